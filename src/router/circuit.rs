//! Whether a lane still believes in its worker. A value: told what happened and when; no clock,
//! no I/O.

use std::time::Duration;

use tokio::time::Instant;

/// In a row, of answers that never came. The first may be a connection that was aged under the
/// request or one slow sync; a second one on the same parts is the worker.
const STRIKES_MAX: u8 = 2;

#[derive(Debug)]
pub(crate) struct Circuit {
    strikes: u8,
    /// `Some` while open.
    next_probe: Option<Instant>,
    probe_interval: Duration,
}

impl Circuit {
    pub(crate) fn new(probe_interval: Duration) -> Self {
        Self {
            strikes: 0,
            next_probe: None,
            probe_interval,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.next_probe.is_some()
    }

    /// When to ask for the worker; `None` while closed.
    pub(crate) fn next_probe(&self) -> Option<Instant> {
        self.next_probe
    }

    /// The worker answered, whatever it said.
    pub(crate) fn answered(&mut self) {
        self.strikes = 0;
    }

    /// No answer came. True when that was once too often.
    pub(crate) fn strike(&mut self) -> bool {
        self.strikes = self.strikes.saturating_add(1);
        self.strikes >= STRIKES_MAX
    }

    pub(crate) fn open(&mut self, now: Instant) {
        self.strikes = 0;
        self.next_probe = Some(now + self.probe_interval);
    }

    /// The worker is somewhere else now. Old strikes were against the old address, and an open
    /// circuit asks at once.
    pub(crate) fn moved(&mut self, now: Instant) {
        self.strikes = 0;
        if self.is_open() {
            self.next_probe = Some(now);
        }
    }

    pub(crate) fn close(&mut self) {
        self.strikes = 0;
        self.next_probe = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn two_strikes_in_a_row_are_too_many_and_an_answer_between_them_forgives() {
        let mut circuit = Circuit::new(SECOND);
        assert!(!circuit.strike());
        circuit.answered();
        assert!(!circuit.strike());
        assert!(circuit.strike());
    }

    #[test]
    fn strikes_against_an_old_address_do_not_count_against_a_new_one() {
        let mut circuit = Circuit::new(SECOND);
        assert!(!circuit.strike());
        circuit.moved(Instant::now());
        assert!(!circuit.strike(), "the call that the move cut");
        assert!(circuit.strike());
    }

    #[test]
    fn an_open_circuit_asks_once_an_interval_or_at_once_after_a_move() {
        let now = Instant::now();
        let mut circuit = Circuit::new(SECOND);
        circuit.moved(now);
        assert_eq!(
            circuit.next_probe(),
            None,
            "a closed circuit has nothing to ask"
        );
        circuit.open(now);
        assert_eq!(circuit.next_probe(), Some(now + SECOND));
        circuit.open(now + SECOND);
        assert_eq!(circuit.next_probe(), Some(now + 2 * SECOND));
        circuit.moved(now);
        assert_eq!(circuit.next_probe(), Some(now));
        circuit.close();
        assert!(!circuit.is_open());
        assert!(
            !circuit.strike(),
            "old strikes do not count after a recovery"
        );
    }
}
