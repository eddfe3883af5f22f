//! Lines of an export that are set aside, in a file without a name, until what they belong to is stored. Floor 4.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Seek, Write},
};

use super::TransferError;

/// Lines that are set aside. There may be any number of them, so they are not kept in memory.
#[derive(Default)]
pub(super) struct Aside(Option<BufWriter<File>>);

impl Aside {
    /// Sets a line aside, with its end.
    pub(super) fn keep(&mut self, line: &[u8]) -> Result<(), TransferError> {
        let file = match &mut self.0 {
            Some(file) => file,
            None => self.0.insert(BufWriter::new(
                tempfile::tempfile().map_err(TransferError::Aside)?,
            )),
        };
        file.write_all(line).map_err(TransferError::Aside)
    }

    /// The lines from the first one on.
    pub(super) fn take_back(self) -> Result<TakenBack, TransferError> {
        let rewind = |file: BufWriter<File>| {
            let mut file = file.into_inner().map_err(|error| error.into_error())?;
            file.rewind()?;
            Ok(BufReader::new(file))
        };
        let file = self.0.map(rewind).transpose();
        Ok(TakenBack {
            file: file.map_err(TransferError::Aside)?,
            line: Vec::new(),
        })
    }
}

/// The lines that were set aside.
pub(super) struct TakenBack {
    file: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl TakenBack {
    /// The next line; none behind the last.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, TransferError> {
        self.line.clear();
        if let Some(file) = &mut self.file {
            file.read_until(b'\n', &mut self.line)
                .map_err(TransferError::Aside)?;
        }
        Ok((!self.line.is_empty()).then_some(&self.line))
    }
}
