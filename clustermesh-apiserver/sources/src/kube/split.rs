//! Bytes as they come, cut into objects: the `items` of a list one by one, and the lines of a watch.
//!
//! Neither holds more than one object, however long the answer is. Cost: each byte once.

use super::follow::Failure;

/// One object. etcd takes requests of 1.5 MiB; as JSON an object may be a few times that.
const MAX_OBJECT: usize = 16 << 20;
/// What a list says beside its items.
const MAX_HEAD: usize = 64 << 10;
/// Nesting within one object; Kubernetes' own decoder stops far below.
const MAX_DEPTH: u32 = 256;

fn too_long(what: &str, limit: usize) -> Failure {
    Failure::Malformed(format!("{what} is longer than {limit} bytes"))
}

/// Cuts a JSON list: feeds each element of its top-level `items` to a callback and keeps the rest, the head.
#[derive(Debug, Default)]
pub(crate) struct ListSplitter {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// Within the array that is the value of the top-level key `items`.
    in_items: bool,
    /// The string that was last read at depth 1, as it is written, and whether it is whole.
    key: Vec<u8>,
    item: Vec<u8>,
    head: Vec<u8>,
}

impl ListSplitter {
    /// `item` is called with the text of each item, in order.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut item: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if self.in_items && self.depth >= 2 {
                self.in_items(byte, &mut item)?;
                rest = self.plain(rest)?;
            } else {
                self.outside(byte)?;
            }
        }
        Ok(())
    }

    /// The list without its items, once all of it was fed.
    pub(crate) fn head(&self) -> Result<&[u8], Failure> {
        match self.depth {
            0 if !self.head.is_empty() => Ok(&self.head),
            _ => Err(Failure::Malformed("the list ended in its middle".into())),
        }
    }

    /// Takes what comes before the next byte that could change anything: most of an item is such text.
    fn plain<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Failure> {
        if self.depth <= 2 || self.escaped {
            return Ok(bytes);
        }
        let in_string = self.in_string;
        let turns = |byte: &u8| match byte {
            b'"' => true,
            b'\\' => in_string,
            b'{' | b'}' | b'[' | b']' => !in_string,
            _ => false,
        };
        let (plain, rest) = bytes.split_at(bytes.iter().position(turns).unwrap_or(bytes.len()));
        if self.item.len() + plain.len() > MAX_OBJECT {
            return Err(too_long("an item of the list", MAX_OBJECT));
        }
        self.item.extend_from_slice(plain);
        Ok(rest)
    }

    fn in_items(
        &mut self,
        byte: u8,
        item: &mut impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.depth == 2 && !self.in_string {
            match byte {
                b']' => {
                    (self.depth, self.in_items) = (1, false);
                    self.head.push(byte);
                    return Ok(());
                }
                b',' | b' ' | b'\n' | b'\r' | b'\t' => return Ok(()),
                b'{' => {}
                _ => return Err(Failure::Malformed("an item of the list is no object".into())),
            }
        }
        if self.item.len() == MAX_OBJECT {
            return Err(too_long("an item of the list", MAX_OBJECT));
        }
        self.item.push(byte);
        self.step(byte)?;
        if self.depth == 2 && !self.in_string {
            item(&self.item)?;
            self.item.clear();
        }
        Ok(())
    }

    fn outside(&mut self, byte: u8) -> Result<(), Failure> {
        if self.head.len() == MAX_HEAD {
            return Err(too_long("what is beside the list's items", MAX_HEAD));
        }
        self.head.push(byte);
        if self.depth == 1 {
            match (self.in_string, byte) {
                (false, b'"') => self.key.clear(),
                (false, b',' | b'}') => self.key.clear(),
                (false, b'[') if self.key == b"items" => self.in_items = true,
                (true, b'"') if !self.escaped => {}
                (true, _) => self.key.push(byte),
                _ => {}
            }
        }
        self.step(byte)
    }

    /// Strings and nesting.
    fn step(&mut self, byte: u8) -> Result<(), Failure> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' if self.depth == MAX_DEPTH => {
                return Err(Failure::Malformed(format!("nested deeper than {MAX_DEPTH}")));
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' if self.depth == 0 => {
                return Err(Failure::Malformed("a bracket closes what was never opened".into()));
            }
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        Ok(())
    }
}

/// Cuts a watch into its lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
}

impl Lines {
    /// `line` is called with each whole line that is not blank. What is left of the last one waits for more, and is
    /// nothing when no more comes: an event without its end was not sent whole.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (rest, after) = (&bytes[..end], &bytes[end + 1..]);
            bytes = after;
            if self.line.is_empty() {
                if !rest.trim_ascii().is_empty() {
                    line(rest)?;
                }
                continue;
            }
            self.line.extend_from_slice(rest);
            let whole = std::mem::take(&mut self.line);
            line(&whole)?;
        }
        if self.line.len() + bytes.len() > MAX_OBJECT {
            return Err(too_long("an event", MAX_OBJECT));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items and head of a list that comes in pieces of this size.
    fn split(text: &str, piece: usize) -> Result<(Vec<String>, String), Failure> {
        let (mut splitter, mut items) = (ListSplitter::default(), Vec::new());
        for piece in text.as_bytes().chunks(piece) {
            splitter.feed(piece, |item| {
                items.push(String::from_utf8_lossy(item).into_owned());
                Ok(())
            })?;
        }
        let head = String::from_utf8_lossy(splitter.head()?).into_owned();
        Ok((items, head))
    }

    const LIST: &str = r#"{"kind":"PodList","metadata":{"items":[1],"note":"\"items\":["},"items":[
        {"a":"]},{\"\\"}, {"items":[{"b":[]}]}
    ],"after":{}}"#;

    #[test]
    fn items_are_cut_the_same_however_the_bytes_come() {
        let expected = (
            vec![r#"{"a":"]},{\"\\"}"#.to_owned(), r#"{"items":[{"b":[]}]}"#.to_owned()],
            r#"{"kind":"PodList","metadata":{"items":[1],"note":"\"items\":["},"items":[],"after":{}}"#
                .to_owned(),
        );
        for piece in 1..LIST.len() + 1 {
            assert_eq!(split(LIST, piece).unwrap(), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn a_list_may_have_no_items_in_any_way_of_writing_that() {
        for list in [r#"{"items":[]}"#, r#"{"items":null,"a":[{}]}"#, "{}", r#"{"note":"items","x":[{}]}"#] {
            assert_eq!(split(list, 3).unwrap(), (vec![], list.to_owned()));
        }
    }

    #[test]
    fn a_list_that_breaks_off_or_holds_no_objects_is_refused_and_nothing_panics() {
        for end in 0..LIST.len() {
            assert!(split(&LIST[..end], 5).is_err(), "{}", &LIST[..end]);
        }
        for wrong in [r#"{"items":[1]}"#, "}", r#"{"items":["a"]}"#] {
            assert!(split(wrong, 2).is_err(), "{wrong}");
        }
        assert!(split(&"[".repeat(1000), 7).is_err());
        assert!(split(&format!("{{\"a\":\"{}", "x".repeat(MAX_HEAD)), 4096).is_err());
    }

    #[test]
    fn lines_are_cut_the_same_however_the_bytes_come_and_half_a_line_is_none() {
        let text = "{\"a\":1}\n\n{\"b\":2}\r\n{\"half\":";
        for piece in 1..=text.len() {
            let (mut lines, mut cut) = (Lines::default(), Vec::new());
            for piece in text.as_bytes().chunks(piece) {
                lines
                    .feed(piece, |line| {
                        cut.push(String::from_utf8_lossy(line.trim_ascii()).into_owned());
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(cut, ["{\"a\":1}", "{\"b\":2}"], "in pieces of {piece}");
        }
    }
}
