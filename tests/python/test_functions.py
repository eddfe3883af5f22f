"""Every function of the guide, called as a program with psycopg2 calls them: arguments as untyped literals, as typed
UUIDs, with and without defaults. DATABASE_URL names a database on which a server runs with the built-in domain."""

import json
import os
import time
import unittest
import uuid

import psycopg2
import psycopg2.errorcodes
import psycopg2.extras

NAMESPACE = uuid.UUID("9f3c1c56-7a0e-5b1e-9c39-7d3f6f0b6a11")
USER = json.dumps({"username": "ada"})


def id_of(key):
    return str(uuid.uuid5(NAMESPACE, key))


class Functions(unittest.TestCase):
    def setUp(self):
        self.connection = psycopg2.connect(os.environ["DATABASE_URL"])
        self.cursor = self.connection.cursor()

    def tearDown(self):
        self.connection.close()

    def rows(self, statement, *arguments):
        self.cursor.execute(statement, arguments)
        rows = self.cursor.fetchall()
        self.connection.commit()
        return rows

    def value(self, statement, *arguments):
        (row,) = self.rows(statement, *arguments)
        return row[0]

    def refused(self, code, statement, *arguments):
        with self.assertRaises(psycopg2.Error) as raised:
            self.cursor.execute(statement, arguments)
        self.connection.rollback()
        self.assertEqual(raised.exception.pgcode, code, raised.exception)
        return raised.exception.diag.message_primary

    def until(self, is_there):
        """What the server does of itself takes a moment."""
        end = time.monotonic() + 20
        while True:
            found = is_there()
            if found:
                return found
            self.assertLess(time.monotonic(), end, "it does not come")
            time.sleep(0.01)

    # Events and aggregates

    def test_events_are_appended_to_a_key_and_read_back(self):
        key = f"user-{uuid.uuid4()}"
        first = self.value("SELECT append_event(%s, %s, %s, %s)", key, "user", "user_seen", USER)
        second = self.value(
            "SELECT append_event(%s, %s, %s, %s, %s)", key, "user", "user_seen", USER, json.dumps({"correlationId": "c"})
        )
        third = self.value("SELECT append_event(%s, %s, %s, %s, %s, %s)", key, "user", "user_seen", USER, "{}", 2)
        self.assertEqual(uuid.UUID(first).version, 7)

        self.cursor.execute("SELECT * FROM get_events_for_aggregate(%s)", (key,))
        names = [column.name for column in self.cursor.description]
        self.assertEqual(
            names,
            ["id", "aggregate_id", "aggregate_type", "event_type", "event_data", "event_metadata", "version", "created_at"],
        )
        events = self.cursor.fetchall()
        self.assertEqual([event[0] for event in events], [first, second, third])
        self.assertEqual({event[1] for event in events}, {id_of(key)})
        self.assertEqual(events[1][2:7], ("user", "user_seen", {"username": "ada"}, {"correlationId": "c"}, 2))
        self.assertEqual(events[0][5], {})
        self.assertEqual(len(self.rows("SELECT * FROM get_events_for_aggregate(%s, %s)", key, 2)), 1)
        self.assertEqual(len(self.rows("SELECT * FROM get_events_for_aggregate(%s, %s)", key, 3)), 0)

    def test_a_uuid_is_the_same_as_a_literal_as_text_and_as_a_typed_value(self):
        aggregate = uuid.uuid4()
        statements = [
            "SELECT append_event(%s, 'user', 'user_seen', %s)",
            "SELECT append_event(%s::text, 'user', 'user_seen', %s)",
            "SELECT append_event(%s::varchar, 'user', 'user_seen', %s)",
            "SELECT append_event(%s::uuid, 'user', 'user_seen', %s)",
            "SELECT append_event(p_aggregate_id => %s::uuid, p_aggregate_type => 'user', p_event_type => 'user_seen', "
            "p_event_data => %s)",
        ]
        for statement in statements:
            self.value(statement, str(aggregate), USER)
        psycopg2.extras.register_uuid(conn_or_curs=self.connection)
        self.value("SELECT append_event(%s, 'user', 'user_seen', %s)", aggregate, psycopg2.extras.Json({"a": 1}))
        for text in [str(aggregate).upper(), aggregate.hex, f"{{{aggregate}}}", aggregate.urn]:
            self.value("SELECT append_event(%s, 'user', 'user_seen', %s)", text, USER)
        events = self.rows("SELECT aggregate_id, version FROM get_events_for_aggregate(%s)", aggregate)
        self.assertEqual(events, [(aggregate, version) for version in range(1, 11)])
        self.assertEqual(self.value("SELECT get_aggregate_version(%s)", aggregate), 10)

    def test_keys_stand_for_their_uuids(self):
        for key in ["user-123", " ", "ä" * 100, "x" * 39, "x" * 40, "x" * 103, "x" * 104, "not-a-uuid\n", "{}"]:
            self.assertEqual(self.value("SELECT tidings_id_of_key(%s)", key), id_of(key), key)

    def test_an_aggregate_has_a_type_and_the_version_of_its_newest_event(self):
        for aggregate, cast in [(f"order-{uuid.uuid4()}", ""), (str(uuid.uuid4()), "::uuid")]:
            argument = f"%s{cast}"
            self.value(f"SELECT create_aggregate({argument}, %s)", aggregate, "order")
            self.value(f"SELECT create_aggregate({argument}, %s)", aggregate, "order")
            self.assertEqual(self.value(f"SELECT get_aggregate_version({argument})", aggregate), 0)
            message = self.refused("TD002", f"SELECT create_aggregate({argument}, %s)", aggregate, "user")
            self.assertEqual(message, "the aggregate is a order, not a user")
            message = self.refused("TD002", f"SELECT append_event({argument}, 'user', 'x', '1')", aggregate)
            self.assertEqual(message, "the aggregate is a order, not a user")
            self.value(f"SELECT append_event({argument}, 'order', 'order_placed', '{{}}')", aggregate)
            self.assertEqual(self.value(f"SELECT get_aggregate_version({argument})", aggregate), 1)
            self.value(f"SELECT update_aggregate_version({argument}, %s)", aggregate, 1)
            message = self.refused("TD001", f"SELECT update_aggregate_version({argument}, %s)", aggregate, 2)
            self.assertEqual(message, "the aggregate is at version 1, not 2")
            message = self.refused("TD001", f"SELECT append_event({argument}, 'order', 'x', '1', '{{}}', 0)", aggregate)
            self.assertEqual(message, "the aggregate is at version 1, not 0")
            self.assertEqual(self.value(f"SELECT get_aggregate_version({argument})", aggregate), 1)

    def test_bad_input_is_refused_and_changes_nothing(self):
        key = f"user-{uuid.uuid4()}"
        append = "SELECT append_event(%s, %s, %s, %s, %s)"
        nested = lambda levels: "[" * levels + "1" + "]" * levels
        cases = [
            ((None, "user", "x", "1", "{}"), "p_aggregate_id must not be NULL"),
            ((key, "", "x", "1", "{}"), "p_aggregate_type must not be empty: give it 1 to 100 characters"),
            ((key, "user", "ä" * 101, "1", "{}"), "p_event_type has 101 characters: give it 1 to 100"),
            ((key, "user", "a\nb", "1", "{}"), "p_event_type holds the control character U+000A: leave it out"),
            ((key, "user", None, "1", "{}"), "p_event_type must not be NULL: give it 1 to 100 characters"),
            ((key, "user", "x", None, "{}"), "p_event_data must not be NULL: JSON has a null of its own"),
            ((key, "user", "x", nested(65), "{}"), "p_event_data has more than 64 levels of arrays and objects: 64 are allowed"),
            ((key, "user", "x", "[1e131000]", "{}"), "p_event_data holds a number beyond the range of a double, which no reader could read"),
            ((key, "user", "x", '{"a":{"b":-1e309}}', "{}"), "p_event_data holds a number beyond the range of a double, which no reader could read"),
            ((key, "user", "x", json.dumps("x" * 1048576), "{}"), "p_event_data has 1048578 bytes as JSON text: at most 1048576 are allowed"),
            ((key, "user", "x", "1", "[]"), "p_event_metadata must be a JSON object"),
            ((key, "user", "x", "1", json.dumps({"correlationId": "x" * 499})), "p_event_metadata.correlationId has 501 bytes as JSON: at most 500 are allowed"),
        ]
        for arguments, expected in cases:
            self.assertEqual(self.refused("22023", append, *arguments), expected)
        self.refused("22023", "SELECT append_event(%s, 'user', 'x', '1', '{}', -1)", key)
        # What is no JSONB in the first place.
        self.refused("22P05", append, key, "user", "x", '"\\u0000"', "{}")
        self.refused("22P02", append, key, "user", "x", '"\\ud800"', "{}")
        self.assertEqual(self.rows("SELECT * FROM get_events_for_aggregate(%s)", key), [])

        for data in [nested(64), "1.7976931348623157e308", "1e-400", '"' + "x" * 1048574 + '"', "null"]:
            self.value(append, key, "user", "x", data, None)
        self.assertEqual(self.value("SELECT get_aggregate_version(%s)", key), 5)

    # Streams

    def test_entries_of_a_stream_have_positions_without_a_gap(self):
        stream = f"orders {uuid.uuid4()}"
        append = "SELECT append_to_stream(%s, %s, %s, %s)"
        self.assertEqual(self.value(append, stream, "event-1", "order_placed", '{"n": 1}'), 1)
        self.assertEqual(self.value(append, stream, str(uuid.uuid4()), "order_placed", '{"n": 2}'), 2)
        self.assertEqual(self.value("SELECT append_to_stream(%s, %s::uuid, %s, %s)", stream, str(uuid.uuid4()), "x", "3"), 3)
        self.assertEqual(self.value(append, stream, "event-1", "order_placed", '{"n": 1.0}'), 1)
        message = self.refused("TD004", append, stream, "event-1", "order_placed", '{"n": 2}')
        self.assertEqual(message, f"the id {id_of('event-1')} stands for something else already")
        self.refused("22023", append, "", "event-2", "x", "1")

        self.cursor.execute("SELECT * FROM read_from_stream(%s)", (stream,))
        names = [column.name for column in self.cursor.description]
        self.assertEqual(names, ["event_id", "event_type", "event_data", "position", "created_at"])
        entries = self.cursor.fetchall()
        self.assertEqual([entry[3] for entry in entries], [1, 2, 3])
        self.assertEqual(entries[0][:3], (id_of("event-1"), "order_placed", {"n": 1}))
        positions = lambda *arguments: [row[0] for row in self.rows(*arguments)]
        self.assertEqual(positions("SELECT position FROM read_from_stream(%s, %s)", stream, 1), [2, 3])
        self.assertEqual(positions("SELECT position FROM read_from_stream(%s, %s, %s)", stream, 0, 2), [1, 2])
        self.rows("SELECT append_to_stream(%s, 'more-' || n, 'x', '{}') FROM generate_series(1, 200) AS n", stream)
        self.assertEqual(len(self.rows("SELECT * FROM read_from_stream(%s)", stream)), 100)
        self.assertEqual(positions("SELECT position FROM read_from_stream(%s, 100, 1000)", stream), list(range(101, 204)))

    # Commands

    def test_a_command_is_processed_once(self):
        for user, cast in [(f"user-{uuid.uuid4()}", ""), (str(uuid.uuid4()), "::uuid")]:
            # In one transaction: the server's worker does not see it before.
            self.cursor.execute(f"SELECT create_command(%s{cast}, %s, %s)", (user, "create_user", USER))
            command = self.cursor.fetchone()[0]
            self.cursor.execute(f"SELECT process_command(%s{cast})", (command,))
            self.assertIs(self.cursor.fetchone()[0], True)
            self.connection.commit()
            self.assertIs(self.value("SELECT process_command(%s)", command), True)
            events = self.rows("SELECT event_type, event_data, event_metadata FROM get_events_for_aggregate(%s)", user)
            metadata = {"commandId": command, "causationId": command, "correlationId": command}
            self.assertEqual(events, [("user_created", {"username": "ada"}, metadata)])

            self.cursor.execute("SELECT create_command(%s, 'create_user', %s)", (user, USER))
            again = self.cursor.fetchone()[0]
            self.cursor.execute("SELECT process_command(%s::uuid)", (again,))
            self.assertIs(self.cursor.fetchone()[0], False)
            self.connection.commit()
            stored = self.rows("SELECT status, reason FROM commands WHERE id = %s", again)
            self.assertEqual(stored, [("REJECTED", "the user is there already")])
            self.assertIs(self.value("SELECT process_command(%s)", again), False)
            self.assertEqual(self.value("SELECT get_aggregate_version(%s)", user), 1)

    def test_a_command_that_nobody_processes_is_left_to_the_server(self):
        user = f"user-{uuid.uuid4()}"
        command = self.value("SELECT create_command(%s, 'create_user', %s)", user, USER)
        status = lambda: self.value("SELECT status FROM commands WHERE id = %s", command)
        self.until(lambda: status() == "PROCESSED")
        self.assertIs(self.value("SELECT process_command(%s)", command), True)
        self.assertEqual(self.value("SELECT get_aggregate_version(%s)", user), 1)

    def test_commands_that_are_none_are_refused(self):
        user = f"user-{uuid.uuid4()}"
        message = self.refused("TD005", "SELECT create_command(%s, 'make_user', '{}')", user)
        self.assertEqual(message, "p_command_type names no command of the domain in force: make_user")
        message = self.refused("22023", "SELECT create_command(%s, 'create_user', '{}')", user)
        self.assertEqual(message, "p_command_data is not what create_user takes: username must be given")
        self.refused("TD006", "SELECT process_command(%s)", str(uuid.uuid4()))
        self.refused("22023", "SELECT process_command(NULL::uuid)")
        self.assertEqual(self.rows("SELECT * FROM commands WHERE aggregate_id = %s", id_of(user)), [])

    # Read models

    def test_a_read_model_is_never_overwritten_by_an_older_one(self):
        for aggregate, cast in [(f"report-{uuid.uuid4()}", ""), (str(uuid.uuid4()), "::uuid")]:
            update = f"SELECT update_read_model(%s{cast}, %s, %s, %s)"
            read = f"SELECT * FROM get_read_model(%s{cast})"
            self.assertEqual(self.rows(read, aggregate), [])
            self.value(update, aggregate, "report", '{"n": 5}', 5)
            self.value(update, aggregate, "report", '{"n": 4}', 4)
            self.value(update, aggregate, "report", '{"n": 55}', 5)
            (row,) = self.rows(read, aggregate)
            names = [column.name for column in self.cursor.description]
            self.assertEqual(names, ["aggregate_id", "aggregate_type", "model_data", "version", "updated_at"])
            self.assertEqual(row[1:4], ("report", {"n": 5}, 5))
            self.value(update, aggregate, "report", '{"n": 6}', 6)
            self.assertEqual(self.rows(read, aggregate)[0][2:4], ({"n": 6}, 6))
            self.refused("TD002", update, aggregate, "user", "{}", 7)
            self.refused("22023", update, aggregate, "report", "{}", -1)
            self.refused("22023", update, aggregate, "report", "{}", None)
            self.refused("22023", update, aggregate, "report", "[1e400]", 7)

    def test_a_read_model_is_not_ahead_of_its_aggregate(self):
        user = f"user-{uuid.uuid4()}"
        self.value("SELECT append_event(%s, 'user', 'user_seen', %s)", user, USER)
        message = self.refused("22023", "SELECT update_read_model(%s, 'user', '{}', 2)", user)
        self.assertEqual(message, "p_version is 2, and the aggregate has only come to version 1: append its events first")
        self.value("SELECT update_read_model(%s, 'user', %s, 1)", user, '{"by": "sql"}')
        self.assertEqual(self.rows("SELECT model_data FROM get_read_model(%s)", user), [({"by": "sql"},)])

    def test_what_the_server_projects_is_a_read_model(self):
        user = f"user-{uuid.uuid4()}"
        self.value("SELECT append_event(%s, 'user', 'user_created', %s)", user, USER)
        (row,) = self.until(lambda: self.rows("SELECT model_data, version FROM get_read_model(%s)", user))
        self.assertEqual(row, ({"username": "ada"}, 1))

    # Handlers

    def test_a_handler_is_registered_changed_and_run(self):
        name, event_type = f"note-{uuid.uuid4()}", f"noted_{uuid.uuid4().hex}"
        self.cursor.execute("CREATE TABLE IF NOT EXISTS notes (event_id uuid, aggregate_id uuid, data jsonb)")
        self.cursor.execute(
            "CREATE OR REPLACE FUNCTION note_event(uuid, uuid, jsonb) RETURNS void LANGUAGE sql "
            "AS 'INSERT INTO notes VALUES ($1, $2, $3)'"
        )
        register = "SELECT register_event_handler(%s, %s, %s)"
        self.value(register, name, "something_else", "log")
        self.value(register, name, event_type, "note_event")
        handler = self.rows("SELECT event_types, handler_function, is_active FROM event_handlers WHERE handler_name = %s", name)
        self.assertEqual(handler, [([event_type], "sql:note_event", True)])

        data = '{"name": "o\'clock; DROP TABLE events"}'
        event = self.value("SELECT append_event(%s, 'user', %s, %s)", f"user-{uuid.uuid4()}", event_type, data)
        notes = "SELECT data FROM notes WHERE event_id = %s"
        self.until(lambda: self.rows(notes, event))
        self.assertEqual(self.rows(notes, event), [(json.loads(data),)])
        self.assertIs(self.value("SELECT process_event(%s)", event), True)
        self.assertIs(self.value("SELECT process_event(%s::uuid)", event), True)
        self.assertEqual(len(self.rows(notes, event)), 3)
        self.assertIs(self.value("SELECT process_event(%s)", str(uuid.uuid4())), False)
        self.assertIs(self.value("SELECT process_event(%s)", "no-such-event"), False)

    def test_a_handler_that_cannot_be_is_refused(self):
        register = "SELECT register_event_handler(%s, %s, %s)"
        cases = [
            ("22023", ("a b", "x", "log"), "p_handler_name may hold letters"),
            ("22023", ("a", "x; y", "log"), "p_event_type may hold letters"),
            ("22023", ("", "x", "log"), "p_handler_name must not be empty"),
            ("22023", ("a", "x", "publish:"), "names no stream behind `publish:`: the name must not be empty"),
            ("22023", ("a", "x", "ftp://example.com/"), "use https://… or http://…"),
            ("22023", ("a", "x", "https://ada:secret@example.com/"), "leave them out"),
            ("22023", ("a", "x", "https://example.com/#top"), "leave it out"),
            ("22023", ("a", "x", "https://"), "use https://HOST/PATH"),
            ("22023", ("a", "x", "https://exa mple.com/"), "it holds a space"),
            ("22023", ("a", "x", "https://example.com/" + "a" * 2000), "longer than 2000 bytes"),
            ("22023", ("a", "x", "f; DROP TABLE events"), "p_handler_function is no function"),
            ("22023", ("a", "x", 'sql:"f"'), "names no SQL function behind `sql:`"),
            ("22023", ("a", "x", None), "p_handler_function must not be NULL"),
            ("42883", ("a", "x", "no_such_function"), "has no function no_such_function(uuid, uuid, jsonb)"),
        ]
        for code, arguments, expected in cases:
            self.assertIn(expected, self.refused(code, register, *arguments))
        self.assertEqual(self.rows("SELECT * FROM event_handlers WHERE handler_name IN ('a', 'a b', '')"), [])

    # Metrics

    def test_metrics_are_added_up(self):
        event_type = f"measured_{uuid.uuid4().hex}"
        record = "SELECT record_event_metrics(%s, %s, %s)"
        self.value("SELECT record_event_metrics(%s, %s)", event_type, "user")
        self.value(record, event_type, "user", 10)
        self.value(record, event_type, "user", 40)
        self.value(record, event_type, "user", 10)
        self.value(record, event_type, "order", None)
        other = psycopg2.connect(os.environ["DATABASE_URL"])
        with other, other.cursor() as cursor:
            cursor.execute(record, (event_type, "user", 40))
        other.close()
        self.refused("22023", record, event_type, "user", -1)
        self.refused("22023", record, "", "user", 1)

        def metrics(arguments, *values):
            rows = self.rows(f"SELECT * FROM get_event_metrics({arguments})", *values)
            return [row[1:] for row in rows if row[0] == event_type]

        expected = [("user", 5, 25, 40, 10), ("order", 1, None, None, None)]
        self.assertEqual(metrics(""), expected)
        names = [column.name for column in self.cursor.description]
        self.assertEqual(
            names,
            ["event_type", "aggregate_type", "event_count", "avg_processing_time", "max_processing_time", "min_processing_time"],
        )
        self.assertEqual(metrics("now() - interval '5 minutes'"), expected)
        self.assertEqual(metrics("%s, %s", "2020-01-01", "2020-01-02"), [])
        self.assertEqual(metrics("now(), now() + interval '1 hour'") or expected, expected)


if __name__ == "__main__":
    unittest.main()
