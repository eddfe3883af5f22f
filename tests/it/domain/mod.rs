//! The domain: declared and written deciders, and what folding promises.

mod wrong_files;
