//! Which partition an aggregate or a stream lies in. Floor 0.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{AggregateId, StreamName};

/// The number of a partition, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u8);

impl Partition {
    /// The number as a database column holds it.
    #[must_use]
    pub const fn number(self) -> i16 {
        self.0 as i16
    }

    /// The number as an index into a vector with an element for each partition.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many partitions a database has: a power of two from 1 to 16, fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionCount(u8);

impl PartitionCount {
    /// One partition: the whole log is in one order.
    pub const ONE: Self = Self(1);

    /// Checks a number of partitions; `None` when it is not 1, 2, 4, 8 or 16.
    #[must_use]
    pub fn new(count: u8) -> Option<Self> {
        (count.is_power_of_two() && count <= 16).then_some(Self(count))
    }

    /// The number of partitions.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// All partitions in ascending order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Partition> + ExactSizeIterator + Clone {
        (0..self.0).map(Partition)
    }

    /// The partition of an aggregate: `sha256(its 16 bytes)[0] & (P - 1)`.
    #[must_use]
    pub fn of_aggregate(self, id: AggregateId) -> Partition {
        self.of_bytes(id.0.as_bytes())
    }

    /// The partition of a stream: `sha256(its name in UTF-8)[0] & (P - 1)`.
    #[must_use]
    pub fn of_stream(self, name: &StreamName) -> Partition {
        self.of_bytes(name.as_str().as_bytes())
    }

    fn of_bytes(self, bytes: &[u8]) -> Partition {
        if self == Self::ONE {
            return Partition(0);
        }
        Partition(Sha256::digest(bytes)[0] & (self.0 - 1))
    }
}

impl fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn only_powers_of_two_up_to_16_are_numbers_of_partitions() {
        let good: Vec<u8> = (0..=255)
            .filter(|&n| PartitionCount::new(n).is_some())
            .collect();
        assert_eq!(good, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn aggregates_spread_over_all_partitions_and_stay_where_they_are() {
        let count = PartitionCount::new(16).expect("16 is a power of two");
        let mut seen = [false; 16];
        for n in 0..1000_u128 {
            let id = AggregateId(Uuid::from_u128(n));
            seen[count.of_aggregate(id).index()] = true;
            assert_eq!(count.of_aggregate(id), count.of_aggregate(id));
        }
        assert_eq!(seen, [true; 16]);
    }

    #[test]
    fn the_partition_of_a_stream_is_the_low_bits_of_the_first_byte_of_its_hash() {
        // printf user_events | sha256sum begins with the byte that is checked here against the crate's own answer.
        let name = StreamName::new("user_events").expect("a name");
        let first = Sha256::digest(b"user_events")[0];
        for count in [2_u8, 4, 8, 16] {
            let partitions = PartitionCount::new(count).expect("a power of two");
            assert_eq!(partitions.of_stream(&name), Partition(first & (count - 1)));
        }
    }
}
