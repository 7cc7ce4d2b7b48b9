//! The log, on standard error: one line an event, whatever those who caused it say.

use std::fmt;
use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The same text on one line, with nothing that a terminal obeys.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match is_obeyed(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Control characters, line separators, and what turns the direction of writing.
pub(crate) fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{061c}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Log lines look like the rest of what goes to standard error; a journal adds time and unit.
struct LogLine;

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        writer.write_str("rootswarm: ")?;
        match *event.metadata().level() {
            tracing::Level::ERROR => writer.write_str("error: ")?,
            tracing::Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        // The reason for which a stranger closes a connection is the stranger's own text.
        writeln!(writer, "{}", one_line(&fields))
    }
}

/// `ROOTSWARM_LOG` is error, warn, info (the default), debug or trace.
pub fn start() {
    let level = std::env::var("ROOTSWARM_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(false)
        .event_format(LogLine)
        .finish();
    // Only fails if a log was started before, as in a test that calls `main` twice.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn whatever_is_said_is_one_line() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(LogLine)
            .finish();
        let said = "bye\nrootswarm: admitted\r\n\x1b[31mred\u{9b}2J\u{2028}\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(reason = %said, "join failed");
            tracing::warn!(reason = said, "join failed");
            tracing::error!("join failed: {said}");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for (line, begins) in lines.iter().zip(["join", "warning: join", "error: join"]) {
            assert!(line.starts_with(&format!("rootswarm: {begins}")), "{line}");
            assert!(!line.contains(is_obeyed), "{line:?}");
            assert!(line.contains("admitted") && line.contains("red"), "{line}");
        }
    }
}
