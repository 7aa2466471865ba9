//! Talking to the person: the answer on stdout, everything else on stderr.

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Ends that are no failures. They travel as errors, to unwind the work, and [`crate::main`] gives each its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quit {
    /// The reader of stdout went away: a quiet 0.
    PipeClosed,
    /// Ctrl-C: 130.
    Interrupted,
}

impl Display for Quit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PipeClosed => "the reader of the output went away",
            Self::Interrupted => "interrupted",
        })
    }
}

impl std::error::Error for Quit {}

/// Standard output. What is written is flushed at once, so that a person sees each word when it comes.
#[derive(Debug)]
pub struct Answer<W = io::Stdout>(W);

impl Answer {
    /// The process's standard output.
    #[must_use]
    pub fn stdout() -> Self {
        Self(io::stdout())
    }
}

impl<W: Write> Answer<W> {
    /// An answer that goes to `writer`.
    pub fn to(writer: W) -> Self {
        Self(writer)
    }

    /// Prints the text as it is, with no newline added.
    ///
    /// # Errors
    /// [`Quit::PipeClosed`] if the reader went away, else the failure to write.
    pub fn print(&mut self, text: &str) -> anyhow::Result<()> {
        let written = self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Quit::PipeClosed.into(),
            _ => anyhow::Error::new(error).context("cannot write the answer to standard output"),
        })
    }
}

/// Says something on stderr, in one line or more.
pub fn note(message: impl Display) {
    // A closed stderr must not stop the work, as `eprintln!` would.
    let _ = writeln!(io::stderr(), "{message}");
}

/// Says what is wrong but does not stop the work.
pub fn warn(message: impl Display) {
    note(format_args!("warning: {message}"));
}

/// Says what stopped the work: the error and each of its causes on a line of its own, but for a cause that the line
/// before has told already.
pub fn error(error: &anyhow::Error) {
    let mut said = error.to_string();
    note(format_args!("error: {said}"));
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            note(format_args!("  {cause}"));
            said = cause;
        }
    }
}

/// Asks the person; only a `y` is a yes. `None` where nobody can answer.
#[must_use]
pub fn confirm(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    Some(read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes"))
}

/// How far a long task is: a bar on a terminal, else now and then a plain line.
#[derive(Debug)]
pub struct Progress {
    label: String,
    total: u64,
    unit: Unit,
    started: Instant,
    bar: Option<ProgressBar>,
    /// When the last plain line was printed, and with which tenth.
    printed: (Instant, u64),
    hidden: bool,
}

/// What a task is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    /// Work that has no unit to show: its share of the whole.
    Share,
}

/// A plain line at most this often: a log of a slow network stays short, a fast one prints begin and end only.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Starts a task of about `total` bytes.
    #[must_use]
    pub fn bytes(label: &str, total: u64) -> Self {
        let progress = Self::new(label, total, Unit::Bytes);
        if progress.bar.is_none() {
            note(format_args!("{label}: {}", megabytes(total)));
        }
        progress
    }

    /// Starts a task of about `total` pieces that mean nothing to a person.
    #[must_use]
    pub fn share(label: &str, total: u64) -> Self {
        Self::new(label, total, Unit::Share)
    }

    fn new(label: &str, total: u64, unit: Unit) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = match unit {
                Unit::Bytes => {
                    "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}"
                }
                Unit::Share => "{msg} [{bar:30}] {percent} % {eta}",
            };
            // The templates are constants; were one wrong, indicatif's default bar would do.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(label.to_owned());
            bar
        });
        let now = Instant::now();
        Self { label: label.to_owned(), total, unit, started: now, bar, printed: (now, 0), hidden: false }
    }

    /// Now `done` of the total are done. An estimate may run over; the bar stays at its end.
    pub fn set(&mut self, done: u64) {
        if self.hidden {
            return;
        }
        let done = done.min(self.total);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let tenth = done.saturating_mul(10) / self.total.max(1);
        if tenth > self.printed.1 && self.printed.0.elapsed() >= LINE_EVERY {
            match self.unit {
                Unit::Bytes => {
                    note(format_args!("{}: {} of {}", self.label, megabytes(done), megabytes(self.total)));
                }
                Unit::Share => {
                    let left = (self.total - done) as f64 / done as f64;
                    let left = HumanDuration(self.started.elapsed().mul_f64(left));
                    note(format_args!("{}: {} %, {left} left", self.label, done * 100 / self.total));
                }
            }
            self.printed = (Instant::now(), tenth);
        }
    }

    /// Takes the bar away, and says nothing more.
    pub fn hide(&mut self) {
        self.hidden = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    /// What follows says how it ended.
    fn drop(&mut self) {
        self.hide();
    }
}

/// A size for people: `98.4 MB` (10^6 bytes), small ones in bytes.
#[must_use]
pub fn megabytes(bytes: u64) -> String {
    if bytes < 100_000 { format!("{bytes} bytes") } else { format!("{:.1} MB", bytes as f64 / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_pipe_is_no_failure() {
        let error = Answer::to(Broken(io::ErrorKind::BrokenPipe)).print("x").unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Quit::PipeClosed));
        let error = Answer::to(Broken(io::ErrorKind::StorageFull)).print("x").unwrap_err();
        assert_eq!(error.downcast_ref::<Quit>(), None);
        let mut out = Vec::new();
        Answer::to(&mut out).print("abc").unwrap();
        assert_eq!(out, b"abc");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(megabytes(512), "512 bytes");
        assert_eq!(megabytes(98_362_432), "98.4 MB");
    }
}
