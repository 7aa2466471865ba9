//! JSON objects from strangers, read field by field.
//!
//! A field stays text until it is asked for with the type that it should have. So a file's other fields cost nothing
//! but their place in a list, whatever is in them, and every message names the field. Skipping over a field does not
//! recurse; reading one does, within `serde_json`'s limit of 128 levels.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

/// What is wrong with a JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// The fields that lead to the fault, with dots between; empty for the whole text.
    pub field: String,
    /// What is wrong there.
    pub why: String,
}

impl JsonError {
    /// The same, within `field`.
    #[must_use]
    pub fn within(self, field: &str) -> JsonError {
        let start: String = field.chars().take(100).collect();
        let field = if self.field.is_empty() { start } else { format!("{start}.{}", self.field) };
        JsonError { field, ..self }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.why),
            field => write!(f, "{field}: {}", self.why),
        }
    }
}

impl std::error::Error for JsonError {}

/// A JSON object: its fields in the order of the text, each still JSON text.
#[derive(Clone, Debug, Default)]
pub struct Object<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// Indices in the order of the names.
    by_name: Vec<usize>,
}

impl<'a> Object<'a> {
    /// Reads the fields' names.
    ///
    /// # Errors
    /// Where the text is no JSON object, or has a field twice.
    pub fn parse(text: &'a str) -> Result<Object<'a>, JsonError> {
        parse(text)
    }

    /// All fields.
    pub fn fields(&self) -> &[(Cow<'a, str>, &'a RawValue)] {
        &self.fields
    }

    /// The field `name` as a `T`; `None` where it is missing or `null`.
    ///
    /// # Errors
    /// Where it is something else, naming the field.
    pub fn get<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>, JsonError> {
        let Ok(found) = self.by_name.binary_search_by(|&i| self.fields[i].0.as_ref().cmp(name)) else {
            return Ok(None);
        };
        let text = self.fields[self.by_name[found]].1.get();
        if text == "null" { Ok(None) } else { parse(text).map(Some).map_err(|e| e.within(name)) }
    }
}

/// The text as a `T`.
///
/// # Errors
/// Where it is something else or no JSON.
pub fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, JsonError> {
    serde_json::from_str(text).map_err(|e| JsonError { field: String::new(), why: shorter(&e.to_string()) })
}

/// The texts of a list's elements, to be read one by one: all at once a long list may take far more than its text.
///
/// # Errors
/// Where the text is no list.
pub fn list(text: &str) -> Result<Vec<&str>, JsonError> {
    let elements: Vec<&RawValue> = parse(text)?;
    Ok(elements.into_iter().map(RawValue::get).collect())
}

/// Messages of `serde_json` quote the text at fault, whatever its length.
fn shorter(message: &str) -> String {
    match message.char_indices().nth(200) {
        None => message.to_owned(),
        Some((at, _)) => format!("{}...", &message[..at]),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    fields.push((name.0, value));
                }
                let mut by_name: Vec<usize> = (0..fields.len()).collect();
                by_name.sort_unstable_by(|&a, &b| fields[a].0.cmp(&fields[b].0));
                match by_name.windows(2).find(|pair| fields[pair[0]].0 == fields[pair[1]].0) {
                    None => Ok(Object { fields, by_name }),
                    Some(pair) => {
                        let name: String = fields[pair[0]].0.chars().take(100).collect();
                        Err(A::Error::custom(format_args!("the field {name:?} appears twice")))
                    }
                }
            }
        }
        d.deserialize_map(Fields)
    }
}

/// A text, borrowed where the JSON has it without escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(s.to_owned())))
            }
        }
        d.deserialize_str(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_what_they_should_be() {
        let o = Object::parse(r#"{"n": 3, "s": "a\nb", "none": null, "o": {"x": [1, 2]}}"#).unwrap();
        assert_eq!(
            (o.get::<u32>("n"), o.get::<u32>("none"), o.get::<u32>("m")),
            (Ok(Some(3)), Ok(None), Ok(None))
        );
        assert_eq!(&*o.get::<Text<'_>>("s").unwrap().unwrap(), "a\nb");
        let inner: Object<'_> = o.get("o").unwrap().unwrap();
        assert_eq!(inner.get::<Vec<u8>>("x"), Ok(Some(vec![1, 2])));
        let e = inner.get::<bool>("x").unwrap_err().within("o").to_string();
        assert!(e.starts_with("o.x: invalid type: sequence, expected a boolean"), "{e}");
    }

    #[test]
    fn elements_of_a_list_stay_text() {
        assert_eq!(list(r#" [ {"a": 1}, [2, 3], "x" ] "#), Ok(vec![r#"{"a": 1}"#, "[2, 3]", "\"x\""]));
        assert!(list("{}").unwrap_err().to_string().contains("expected a sequence"));
    }

    #[test]
    fn what_is_no_object_is_said() {
        for (text, why) in [
            ("", "EOF"),
            ("[]", "expected an object"),
            (r#"{"a": 1"#, "EOF"),
            (r#"{"a": 1, "a": 2}"#, "the field \"a\" appears twice"),
            ("{\"a\": \u{1}}", "expected value"),
        ] {
            let e = Object::parse(text).unwrap_err().to_string();
            assert!(e.contains(why), "{text}: {e}");
        }
        // Deep nesting costs nothing to skip, and has an end where it is read.
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let o = Object::parse(&deep).unwrap();
        #[derive(Debug)]
        struct Nested;
        impl<'de> Deserialize<'de> for Nested {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                Vec::<Nested>::deserialize(d).map(|_| Nested)
            }
        }
        assert!(o.get::<Nested>("a").unwrap_err().to_string().contains("recursion limit"));
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(10_000));
        assert!(Object::parse(&long).unwrap().get::<u32>("a").unwrap_err().to_string().len() < 300);
    }
}
