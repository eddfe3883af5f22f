//! All tests that run a server, in one binary.

mod http;
mod support;
