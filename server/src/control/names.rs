//! What a topic may be called.
//!
//! Owns: the rule. A name becomes part of a path, of a metric and of a line of text, so it is plain ASCII.
//! Invariant: `NAME-XXXXXXXX` of an accepted name is a file name on every Linux file system, and never `.` or `..`.
//! Source: the character set is Kafka's; its length limit of 249 does not leave room for the id.

/// Longest name: a file name has 255 bytes, and the directory adds a hyphen and 8 digits.
pub const TOPIC_NAME_BYTES_MAX: usize = 246;

/// Names that begin so belong to the server itself.
pub const RESERVED_PREFIX: &str = "__";

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicNameError {
    /// Nothing at all.
    #[error("a topic name is empty; choose one of letters, digits, '.', '_' and '-'")]
    Empty,
    /// Too long for a file name.
    #[error("a topic name of {bytes} bytes is too long; the limit is {TOPIC_NAME_BYTES_MAX}")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Something else than a letter, a digit, `.`, `_` or `-`.
    #[error("topic name {name:?} holds {character:?}; use letters, digits, '.', '_' and '-' alone")]
    Character {
        /// The name.
        name: String,
        /// The first wrong character.
        character: char,
    },
    /// `.` or `..`.
    #[error("topic name {name:?} means a directory; choose another one")]
    Dots {
        /// The name.
        name: String,
    },
    /// Begins with `__`.
    #[error(
        "topic name {name:?}: names that begin with {RESERVED_PREFIX} belong to the server; choose another one"
    )]
    Reserved {
        /// The name.
        name: String,
    },
}

/// Checks a name that a client chose.
pub fn check_topic_name(name: &str) -> Result<(), TopicNameError> {
    if name.is_empty() {
        return Err(TopicNameError::Empty);
    }
    if name.len() > TOPIC_NAME_BYTES_MAX {
        return Err(TopicNameError::TooLong { bytes: name.len() });
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(character) = name.chars().find(|c| !is_allowed(*c)) {
        return Err(TopicNameError::Character { name: name.to_owned(), character });
    }
    if name == "." || name == ".." {
        return Err(TopicNameError::Dots { name: name.to_owned() });
    }
    if name.starts_with(RESERVED_PREFIX) {
        return Err(TopicNameError::Reserved { name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use corelog_engine::TopicId;
    use proptest::prelude::*;

    use super::super::snapshot::topic_directory_name;
    use super::*;

    #[test]
    fn good_names_pass_and_bad_ones_say_why() {
        for good in ["a", "Orders.2026", "x-y_z", "...", "_one", "0", &"n".repeat(TOPIC_NAME_BYTES_MAX)] {
            assert_eq!(check_topic_name(good), Ok(()), "{good:?}");
        }
        let check = |name: &str, words: &str| {
            let text = check_topic_name(name).expect_err(name).to_string();
            assert!(text.contains(words), "{text:?} does not say {words:?}");
        };
        check("", "empty");
        check(".", "directory");
        check("..", "directory");
        check("a/b", "'/'");
        check("../etc", "'/'");
        check("a b", "' '");
        check("a\0b", "'\\0'");
        check("k\u{e4}se", "letters, digits");
        check("__offsets", "belong to the server");
        check(&"n".repeat(TOPIC_NAME_BYTES_MAX + 1), "247 bytes");
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_plain_file_name(name in "[ -~]{1,30}|[a-zA-Z0-9._-]{1,260}", id: u128) {
            if check_topic_name(&name).is_ok() {
                let directory = topic_directory_name(&name, TopicId(id));
                prop_assert!(directory.len() <= 255);
                let parts: Vec<Component<'_>> = Path::new(&directory).components().collect();
                prop_assert_eq!(parts, vec![Component::Normal(directory.as_ref())]);
            }
        }

        #[test]
        fn any_text_is_judged_without_panic(name in ".{0,300}") {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            prop_assert!(plain || check_topic_name(&name).is_err());
        }
    }
}
