//! The layers behind a cut, for all sessions of a worker at once.

use crate::error::Result;
use crate::halves::{Back, Text};
use lutite_runtime::decode::Phase;
use lutite_runtime::sample::{Sampler, SamplerConfig};
use lutite_runtime::split::message::Refusal;
use lutite_runtime::split::server::{Job, SessionId};
use std::collections::HashMap;

/// A session's place.
#[derive(Debug)]
struct Seat {
    slot: usize,
    sampler: Sampler,
    /// Its tokens so far, where sampling looks back on them.
    tokens: Vec<u32>,
}

/// What becomes of a job: the token that was wanted, or why there is none.
pub type Outcome = std::result::Result<Option<u32>, String>;

/// See the module's head.
#[derive(Debug)]
pub struct Engine {
    back: Back,
    context: usize,
    seats: HashMap<SessionId, Seat>,
}

impl Engine {
    /// Computes with these layers, for texts of `context` tokens.
    pub fn new(mut back: Back, context: usize) -> Engine {
        // Room is for sessions alone.
        back.remove_text(0);
        Engine { back, context, seats: HashMap::new() }
    }

    /// Tokens that [`Engine::run`] takes at most, of one phase.
    pub fn batch(&self) -> usize {
        self.back.batch()
    }

    /// Makes room for a session.
    ///
    /// # Errors
    /// For the client: sampling that there is not; memory that cannot be had now.
    pub fn open(
        &mut self,
        session: SessionId,
        sampling: &SamplerConfig,
    ) -> std::result::Result<(), (Refusal, String)> {
        // What looks back further than there are tokens would take memory for nothing.
        let last = sampling.repeat_last_n.min(self.context);
        let sampler = Sampler::new(SamplerConfig { repeat_last_n: last, ..sampling.clone() });
        let sampler = sampler.map_err(|e| (Refusal::BadMessage, e.to_string()))?;
        let slot = self.back.add_text().map_err(|e| (Refusal::Busy, e.to_string()))?;
        self.seats.insert(session, Seat { slot, sampler, tokens: Vec::new() });
        Ok(())
    }

    /// The session is gone.
    pub fn close(&mut self, session: SessionId) {
        if let Some(seat) = self.seats.remove(&session) {
            self.back.remove_text(seat.slot);
        }
    }

    /// Does jobs of different sessions, those of a phase in one step.
    pub fn run(&mut self, jobs: &[Job]) -> Vec<(SessionId, Outcome)> {
        let mut done = Vec::with_capacity(jobs.len());
        for answer in [true, false] {
            let phase = if answer { Phase::Answer } else { Phase::Prompt };
            let of_phase: Vec<&Job> = jobs.iter().filter(|job| job.step.answer == answer).collect();
            if of_phase.is_empty() {
                continue;
            }
            match self.step(&of_phase, phase) {
                Ok(outcomes) => done.extend(of_phase.iter().map(|job| job.session).zip(outcomes)),
                Err(e) => done.extend(of_phase.iter().map(|job| (job.session, Err(e.to_string())))),
            }
        }
        done
    }

    fn step(&mut self, jobs: &[&Job], phase: Phase) -> Result<Vec<Outcome>> {
        let Engine { back, seats, .. } = self;
        let (dim, vocab) = (back.config().dim, back.config().vocab);
        let text = |job: &&Job| Text {
            // A session that there is not has a slot that there is not.
            slot: seats.get(&job.session).map_or(usize::MAX, |seat| seat.slot),
            start: job.step.pos as usize,
            tokens: job.step.states.len() / dim,
            wanted: job.step.sample,
        };
        let texts: Vec<Text> = jobs.iter().map(text).collect();
        let states: Vec<f32> = jobs.iter().flat_map(|job| &job.step.states).copied().collect();
        let mut logits = back.step_texts(&texts, &states, phase)?.chunks_exact(vocab);
        let mut outcomes = Vec::with_capacity(jobs.len());
        for (job, text) in jobs.iter().zip(&texts) {
            let logits = if text.wanted { logits.next() } else { None };
            let Some(seat) = seats.get_mut(&job.session) else { continue };
            seat.remember(text.start, &job.step.tokens);
            let position = (text.start + text.tokens) as u64;
            let token = logits.map(|logits| seat.sampler.sample(logits, position)).transpose();
            outcomes.push(token.map_err(|e| e.to_string()));
        }
        Ok(outcomes)
    }
}

impl Seat {
    /// Takes the tokens from position `start` on for those of the text.
    fn remember(&mut self, start: usize, tokens: &[u32]) {
        if tokens.is_empty() {
            return;
        }
        if start < self.tokens.len() {
            self.tokens.truncate(start);
            self.sampler.reset();
            self.tokens.iter().for_each(|token| self.sampler.accept(*token));
        }
        self.tokens.extend_from_slice(tokens);
        tokens.iter().for_each(|token| self.sampler.accept(*token));
    }
}
