//! The undo file: a header, then a line for each key, as JSON.
//!
//! ```text
//! {"causeway_undo":1,"link":"dc-cloud","what":"repair from dc","time":"2026-03-01T02:00:00.250Z"}
//! {"channel":"tags","site":"cloud","key":"a","db":0,"put":{"digest":"0b9d…"},"held":{"digest":"79e3…","value":"AAFi…"}}
//! ```
//!
//! `put` is what the site was to hold instead, `held` what it held, with the value in base64; null where there was nothing.
//! A digest may mean something else in another release: the version of the header counts that, too.

use std::borrow::Cow;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use causeway_core::Space;
use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Value;
use crate::compare::State;
use crate::error::{Error, Result};
use crate::report::KeyAt;

/// The version of the file's form and of the digests in it.
const VERSION: u32 = 1;

/// A header is shorter. What has no line end by then is no undo file.
const HEADER_BYTES_MAX: u64 = 64 << 10;

/// The buffer for lines up to this long is used again.
const LINE_BYTES_KEPT: usize = 1 << 20;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    causeway_undo: u32,
    pub(super) link: String,
    /// What overwrote the keys: `repair from dc`.
    pub(super) what: String,
    /// When it began, as RFC 3339.
    pub(super) time: String,
}

impl Header {
    pub(super) fn new(link: &str, what: &str, time: String) -> Header {
        Header { causeway_undo: VERSION, link: link.to_owned(), what: what.to_owned(), time }
    }
}

/// What is kept of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) channel: String,
    /// The site whose key was overwritten.
    pub(super) site: String,
    pub(super) space: Space,
    pub(super) name: Bytes,
    /// What it was to hold instead.
    pub(super) put: Option<State>,
    /// What it held.
    pub(super) held: Option<(State, Value)>,
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    site: Cow<'a, str>,
    #[serde(flatten)]
    at: KeyAt,
    // Each of them has to be there, if only as a null.
    #[serde(deserialize_with = "Option::deserialize")]
    put: Option<PutLine>,
    #[serde(borrow, deserialize_with = "Option::deserialize")]
    held: Option<HeldLine<'a>>,
}

#[derive(Serialize, Deserialize)]
struct PutLine {
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expire_at_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct HeldLine<'a> {
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expire_at_ms: Option<u64>,
    value: Base64<'a>,
}

/// 32 hexadecimal digits.
struct Digest(u128);

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:032x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let digest = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        digest.map(Digest).ok_or_else(|| D::Error::custom("a digest has 32 hexadecimal digits"))
    }
}

/// Written and read without a copy of its text: a value may be large.
struct Base64<'a>(Cow<'a, [u8]>);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(&self.0, &BASE64))
    }
}

impl<'de> Deserialize<'de> for Base64<'_> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Decode;
        impl Visitor<'_> for Decode {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value in base64")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
                // Its own message would show a part of the value.
                BASE64.decode(text).map_err(|_| E::custom("the value is no base64"))
            }
        }
        Ok(Base64(Cow::Owned(deserializer.deserialize_str(Decode)?)))
    }
}

/// An undo file that is being written.
pub(super) struct UndoFile {
    path: PathBuf,
    out: BufWriter<File>,
}

impl UndoFile {
    /// Makes the file, readable by its owner only, and its folder where that is missing. It is on disk afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is a file of that name, else [`Error::Local`].
    pub(super) fn create(path: &Path, header: &Header) -> Result<UndoFile> {
        if path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let failed =
            |error: std::io::Error| Error::Local(format!("make the undo file {}: {error}", path.display()));
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let mut file = UndoFile { path: path.to_owned(), out: BufWriter::with_capacity(1 << 16, file) };
        file.line(header)?;
        file.sync()?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(file)
    }

    /// Adds a key: what it held, and what it is to hold instead.
    pub(super) fn add(&mut self, record: &Record) -> Result<()> {
        let line = Line {
            channel: record.channel.as_str().into(),
            site: record.site.as_str().into(),
            at: KeyAt::of(&record.space, &record.name),
            put: record
                .put
                .map(|state| PutLine { digest: Digest(state.digest), expire_at_ms: state.expire_at }),
            held: record.held.as_ref().map(|(state, value)| HeldLine {
                digest: Digest(state.digest),
                expire_at_ms: value.expire_at,
                value: Base64(value.bytes.as_slice().into()),
            }),
        };
        self.line(&line)
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let written = serde_json::to_writer(&mut self.out, line).map_err(std::io::Error::from);
        written.and_then(|()| self.out.write_all(b"\n")).map_err(|error| self.failed(&error))
    }

    /// Until everything added is on disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        let synced = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        synced.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        Error::Local(format!(
            "write the undo file {}: {error}; what is not in it was not overwritten. Make room, or name another \
             place by --undo",
            self.path.display()
        ))
    }
}

/// There is a file of that name.
pub(super) fn exists(path: &Path) -> Error {
    Error::Usage(format!(
        "the undo file {} exists already, and none is ever overwritten: name another one by --undo",
        path.display()
    ))
}

/// An undo file that is being read.
pub(super) struct Records {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
    buffer: Vec<u8>,
    /// Its last line is cut: nothing of that batch was overwritten.
    pub(super) is_cut: bool,
}

impl Records {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if it cannot be read, or is none of ours.
    pub(super) fn open(path: &Path) -> Result<(Header, Records)> {
        let wrong = |what: &dyn fmt::Display| {
            Error::Usage(format!("{}: {what}; allowed is an undo file of `verifier repair`", path.display()))
        };
        let file = File::open(path).map_err(|error| wrong(&error))?;
        let mut input = BufReader::with_capacity(1 << 16, file);
        let mut first = Vec::new();
        let read = (&mut input).take(HEADER_BYTES_MAX).read_until(b'\n', &mut first);
        read.map_err(|error| wrong(&error))?;
        let header: Header = serde_json::from_slice(&first).map_err(|_| wrong(&"line 1 is no header"))?;
        if header.causeway_undo != VERSION {
            let written = header.causeway_undo;
            return Err(wrong(&format!("it has version {written}, this release reads {VERSION}")));
        }
        Ok((header, Records { path: path.to_owned(), input, line: 1, buffer: Vec::new(), is_cut: false }))
    }

    /// The next key; `None`: that was the last, or it is cut.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] names a line that is none of ours.
    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        self.buffer.clear();
        let read = self.input.read_until(b'\n', &mut self.buffer);
        read.map_err(|error| Error::Local(format!("read {}: {error}", self.path.display())))?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        match record(&self.buffer) {
            Ok(record) => {
                // A large value is not held twice.
                if self.buffer.len() > LINE_BYTES_KEPT {
                    self.buffer = Vec::new();
                }
                Ok(Some(record))
            }
            Err(_) if !self.buffer.ends_with(b"\n") => {
                self.is_cut = true;
                Ok(None)
            }
            Err(what) => Err(Error::Usage(format!(
                "{}:{}: {what}; nothing is put back from a file that was changed",
                self.path.display(),
                self.line
            ))),
        }
    }
}

fn record(line: &[u8]) -> Result<Record, String> {
    // serde's own message may show a part of the line, and so of a value.
    let wrong = |error: serde_json::Error| {
        let text = error.to_string();
        match error.classify() {
            serde_json::error::Category::Data if text.starts_with("missing field") => text,
            _ => format!("no line of an undo file (column {})", error.column()),
        }
    };
    let line: Line<'_> = serde_json::from_slice(line).map_err(wrong)?;
    let (space, name) = line.at.key().ok_or("the key is no base64")?;
    if line.put.is_none() && line.held.is_none() {
        return Err("a key that neither was there nor was put there".to_owned());
    }
    let state = |digest: Digest, expire_at| State { what: "kept", digest: digest.0, expire_at };
    Ok(Record {
        channel: line.channel.into_owned(),
        site: line.site.into_owned(),
        space,
        name,
        put: line.put.map(|put| state(put.digest, put.expire_at_ms)),
        held: line.held.map(|held| {
            let value = Value { bytes: held.value.0.into_owned(), expire_at: held.expire_at_ms };
            (state(held.digest, held.expire_at_ms), value)
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn records() -> Vec<Record> {
        let state = |digest, expire_at| State { what: "kept", digest, expire_at };
        let record = |name: &[u8], space, put, held| Record {
            channel: "tags".into(),
            site: "cloud".into(),
            space,
            name: Bytes::copy_from_slice(name),
            put,
            held,
        };
        let value = |bytes: &[u8], expire_at| Value { bytes: bytes.to_vec(), expire_at };
        vec![
            record(b"a\"\n", Space::Db(3), None, Some((state(7, None), value(b"\0\xff secret", None)))),
            record(b"\xff", Space::Db(0), Some(state(u128::MAX, Some(9))), None),
            record(
                b"[1,\"x\"]",
                Space::Table("shop.t".into()),
                Some(state(1, None)),
                Some((state(2, Some(5)), value(b"", Some(5)))),
            ),
        ]
    }

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("new/undo.jsonl");
        let mut file =
            UndoFile::create(&path, &Header::new("dc-cloud", "repair from dc", "now".into())).unwrap();
        for record in records() {
            file.add(&record).unwrap();
        }
        file.sync().unwrap();
        path
    }

    fn read(path: &Path) -> Result<(Vec<Record>, bool)> {
        let (_, mut records) = Records::open(path)?;
        let mut all = Vec::new();
        while let Some(record) = records.next()? {
            all.push(record);
        }
        Ok((all, records.is_cut))
    }

    #[test]
    fn what_is_kept_reads_back_and_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        assert_eq!(read(&path).unwrap(), (records(), false));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let again = UndoFile::create(&path, &Header::new("dc-cloud", "repair from dc", "now".into()));
        assert!(matches!(again.err(), Some(Error::Usage(text)) if text.contains("exists already")));
        assert_eq!(read(&path).unwrap().0, records(), "none is overwritten");
    }

    /// Wherever a crash cut it: what stands before is there, and no part of a line is taken for one.
    #[test]
    fn a_file_cut_anywhere_gives_its_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = std::fs::read(&path).unwrap();
        let header = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            if cut < header - 1 {
                assert!(read(&path).is_err(), "{cut}");
                continue;
            }
            let (found, _) = read(&path).unwrap();
            assert_eq!(found, records()[..found.len()], "{cut}");
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            assert!(found.len() + 1 >= lines, "{cut}");
        }
    }

    #[test]
    fn a_line_that_is_none_of_ours_is_named_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = std::fs::read_to_string(&path).unwrap();
        for (line, told) in [
            ("garbage", "no line of an undo file"),
            ("", "no line of an undo file"),
            (r#"{"channel":"c","site":"s","key":"k","db":0,"put":null}"#, "missing field `held`"),
            (r#"{"channel":"c","site":"s","key":"k","db":0,"put":null,"held":null}"#, "neither was there"),
            (
                r#"{"channel":"c","site":"s","key":{"base64":"?"},"db":0,"put":{"digest":"00000000000000000000000000000000"},"held":null}"#,
                "the key is no base64",
            ),
            (
                r#"{"channel":"c","site":"s","key":"k","db":0,"put":{"digest":"secret"},"held":null}"#,
                "no line",
            ),
            (
                r#"{"channel":"c","site":"s","key":"k","db":0,"put":null,"held":{"digest":"00000000000000000000000000000000","value":"secret!"}}"#,
                "no line",
            ),
        ] {
            let mut lines: Vec<&str> = whole.lines().collect();
            lines.insert(2, line);
            std::fs::write(&path, lines.join("\n")).unwrap();
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains("undo.jsonl:3: ") && text.contains(told), "{line}: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
        for other in ["", "\n", "{}", "[1]", &whole.replace("\"causeway_undo\":1", "\"causeway_undo\":2")] {
            std::fs::write(&path, other).unwrap();
            let text = read(&path).unwrap_err().to_string();
            assert!(text.contains("allowed is an undo file"), "{text}");
        }
    }
}
