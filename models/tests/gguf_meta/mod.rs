//! Just enough of GGUF's metadata for the tests; panics on anything odd.
use std::collections::HashMap;

enum Value<'a> {
    Number(u64),
    Numbers(Vec<u64>),
    Text(&'a str),
    Texts(Vec<&'a str>),
}
pub struct Meta<'a>(HashMap<&'a str, Value<'a>>);

struct Reader<'a>(&'a [u8]);
impl<'a> Reader<'a> {
    fn number(&mut self, len: usize) -> u64 {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
    }
    fn text(&mut self) -> &'a str {
        let len = self.number(8) as usize;
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        std::str::from_utf8(head).unwrap()
    }
}
fn width(kind: u64) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

impl<'a> Meta<'a> {
    pub fn parse(bytes: &'a [u8]) -> Self {
        let mut r = Reader(&bytes[16..]);
        let count = r.number(8);
        let mut map = HashMap::new();
        for _ in 0..count {
            let key = r.text();
            let value = match r.number(4) {
                8 => Value::Text(r.text()),
                9 => {
                    let (kind, len) = (r.number(4), r.number(8));
                    match kind {
                        8 => Value::Texts((0..len).map(|_| r.text()).collect()),
                        _ => Value::Numbers((0..len).map(|_| r.number(width(kind))).collect()),
                    }
                }
                kind => Value::Number(r.number(width(kind))),
            };
            map.insert(key, value);
        }
        Meta(map)
    }
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.0.get(key) {
            Some(Value::Number(n)) => Some(*n),
            _ => None,
        }
    }
    pub fn text(&self, key: &str) -> Option<&'a str> {
        match self.0.get(key) {
            Some(Value::Text(t)) => Some(t),
            _ => None,
        }
    }
    pub fn numbers(&self, key: &str) -> Vec<u64> {
        match self.0.get(key) {
            Some(Value::Numbers(n)) => n.clone(),
            _ => Vec::new(),
        }
    }
    pub fn texts(&self, key: &str) -> Vec<&'a str> {
        match self.0.get(key) {
            Some(Value::Texts(t)) => t.clone(),
            _ => Vec::new(),
        }
    }
}
