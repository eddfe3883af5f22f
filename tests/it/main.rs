//! All tests that need more than one part of the server, in one binary.
#![expect(
    clippy::disallowed_methods,
    reason = "tests are outside of the domain: fresh ids keep them apart"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that finds what it does not expect is to fail"
)]

mod architecture;
mod browser;
mod commands;
mod concurrency;
mod contract;
mod domain;
mod faults;
mod graphql;
mod harness;
mod http;
mod observability;
mod plans;
mod read_models;
mod readme;
mod rebuild_command;
mod sdl;
mod sharding;
mod sharding_statements;
mod sql;
mod subscriptions;
mod support;
mod tail;
mod transfer;
