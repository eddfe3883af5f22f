//! How far something is: a bar on a terminal, a line now and then elsewhere, always on standard error. Floor 8.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often it is said in lines how far it is, where there is no terminal to draw a bar on.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How many of some things are done.
pub(super) struct Progress {
    bar: ProgressBar,
    /// What they are: `events`.
    things: &'static str,
    is_drawn: bool,
    started: Instant,
    all: AtomicU64,
    done: AtomicU64,
    said_at: Mutex<Instant>,
}

impl Progress {
    pub(super) fn new(things: &'static str) -> Self {
        let is_drawn = io::stderr().is_terminal();
        let target = match is_drawn {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self {
            bar: ProgressBar::with_draw_target(None, target),
            things,
            is_drawn,
            started: Instant::now(),
            all: AtomicU64::new(0),
            done: AtomicU64::new(0),
            said_at: Mutex::new(Instant::now()),
        }
    }

    /// Begins with so many things to do; `announcement` is said where no bar is drawn.
    pub(super) fn begin(&self, all: u64, announcement: &str) {
        self.all.store(all, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        let style = format!(
            "{{wide_bar}} {{percent}}% of {{human_len}} {}, {{per_sec}}, {{eta}} to go",
            self.things
        );
        if let Ok(style) = ProgressStyle::with_template(&style) {
            self.bar.set_style(style);
        }
        self.bar.reset();
        self.bar.set_length(all);
        self.say(announcement);
    }

    pub(super) fn advance(&self, more: u64) {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        self.bar.inc(more);
        let mut said_at = self.said_at.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_drawn && said_at.elapsed() >= LINE_EVERY {
            *said_at = Instant::now();
            let all = self.all.load(Ordering::Relaxed);
            self.say(&format!("{done} of {all} {}", self.things));
        }
    }

    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn say(&self, line: &str) {
        if !self.is_drawn {
            writeln!(io::stderr(), "{line}").ok();
        }
    }
}
