//! As much of Kafka's protocol as a produce load needs, so that any broker can be measured by the same generator.
//!
//! Owns: the encoding of four requests and their answers. Batches are the same bytes as ours: Kafka's format is ours.
//! Shape: every frame is a big-endian i32 length, then api key i16, version i16, correlation id i32, client id; an
//! answer is a length, the correlation id and the body.
//! Source: Kafka protocol guide: Produce v7, Metadata v4, CreateTopics v2, DeleteTopics v1; Kafka 4 still takes them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use corelog_schemas::messages::Acks;

use crate::error::{BenchError, BenchResult};

const PRODUCE: (i16, i16) = (0, 7);
const METADATA: (i16, i16) = (3, 4);
const CREATE_TOPICS: (i16, i16) = (19, 2);
const DELETE_TOPICS: (i16, i16) = (20, 1);

/// How long a broker may take for anything but a produce.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Codes of a topic that is still being made: unknown topic, leader not available.
const NOT_YET: [i16; 2] = [3, 5];

/// A connection for one request at a time.
pub(crate) struct Kafka {
    stream: TcpStream,
    address: String,
    correlation_id: u32,
}

/// A topic to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewKafkaTopic<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: u32,
    pub(crate) replicas: u16,
    /// Settings such as `min.insync.replicas`.
    pub(crate) settings: Vec<(String, String)>,
}

impl Kafka {
    /// Connects to a broker.
    pub(crate) fn connect(address: &str) -> BenchResult<Self> {
        let stream = TcpStream::connect(address)
            .map_err(|source| BenchError::Io { what: format!("connecting to {address}"), source })?;
        stream.set_nodelay(true).map_err(BenchError::io("setting TCP_NODELAY"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(BenchError::io("setting a time-out"))?;
        Ok(Self { stream, address: address.to_owned(), correlation_id: 0 })
    }

    /// Gives up the socket, for a run.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Makes a topic.
    pub(crate) fn create_topic(&mut self, topic: &NewKafkaTopic<'_>) -> BenchResult<()> {
        let mut body = Body::default();
        body.i32(1).text(topic.name).i32(topic.partitions as i32).i16(topic.replicas as i16).i32(0);
        body.i32(topic.settings.len() as i32);
        for (key, value) in &topic.settings {
            body.text(key).text(value);
        }
        body.i32(PATIENCE.as_millis() as i32).i8(0);
        let answer = self.call(CREATE_TOPICS, &body.0)?;
        let mut answer = Answer::new(&answer);
        answer.i32(); // throttle time
        answer.i32(); // one topic
        answer.text();
        let code = answer.i16();
        let message = answer.text();
        self.check(code, &format!("creating topic {:?}: {}", topic.name, message.unwrap_or_default()))
    }

    /// Deletes a topic.
    pub(crate) fn delete_topic(&mut self, name: &str) -> BenchResult<()> {
        let mut body = Body::default();
        body.i32(1).text(name).i32(PATIENCE.as_millis() as i32);
        let answer = self.call(DELETE_TOPICS, &body.0)?;
        let mut answer = Answer::new(&answer);
        answer.i32();
        answer.i32();
        answer.text();
        let code = answer.i16();
        self.check(code, &format!("deleting topic {name:?}"))
    }

    /// Waits until every partition of a topic has a leader; returns the address of each.
    pub(crate) fn leaders(&mut self, name: &str, partitions: u32) -> BenchResult<Vec<(u32, String)>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leaders) = self.leaders_now(name)?
                && leaders.len() == partitions as usize
            {
                return Ok(leaders);
            }
            if Instant::now() >= deadline {
                return Err(BenchError::Usage(format!("topic {name:?} has partitions without a leader")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn leaders_now(&mut self, name: &str) -> BenchResult<Option<Vec<(u32, String)>>> {
        let mut body = Body::default();
        body.i32(1).text(name).i8(0);
        let answer = self.call(METADATA, &body.0)?;
        let mut answer = Answer::new(&answer);
        answer.i32(); // throttle time
        let mut brokers = Vec::new();
        for _ in 0..answer.count() {
            let id = answer.i32();
            let host = answer.text().unwrap_or_default();
            let port = answer.i32();
            answer.text(); // rack
            brokers.push((id, format!("{host}:{port}")));
        }
        answer.text(); // cluster id
        answer.i32(); // controller
        if answer.count() == 0 {
            return Ok(None);
        }
        let code = answer.i16();
        if NOT_YET.contains(&code) {
            return Ok(None);
        }
        self.check(code, &format!("metadata of topic {name:?}"))?;
        answer.text();
        answer.i8(); // internal
        let mut leaders = Vec::new();
        for _ in 0..answer.count() {
            let (code, partition, leader) = (answer.i16(), answer.i32(), answer.i32());
            for _ in 0..2 {
                for _ in 0..answer.count() {
                    answer.i32(); // replicas, ISR
                }
            }
            let broker = brokers.iter().find(|(id, _)| *id == leader && code == 0);
            leaders.extend(broker.map(|(_, address)| (partition as u32, address.clone())));
        }
        Ok(answer.is_sound().then_some(leaders))
    }

    fn call(&mut self, api: (i16, i16), body: &[u8]) -> BenchResult<Vec<u8>> {
        let broke =
            |source| BenchError::Io { what: format!("the connection to {} broke", self.address), source };
        self.correlation_id += 1;
        let mut frame = Body::default();
        head(&mut frame, api, self.correlation_id, body.len());
        frame.0.extend_from_slice(body);
        self.stream.write_all(&frame.0).map_err(broke)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(broke)?;
        let length = i32::from_be_bytes(length);
        let Some(length) = usize::try_from(length).ok().filter(|l| (4..=ANSWER_BYTES_MAX).contains(l)) else {
            return Err(BenchError::protocol(&self.address, format!("an answer of {length} bytes")));
        };
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).map_err(broke)?;
        Ok(answer.split_off(4))
    }

    fn check(&self, code: i16, what: &str) -> BenchResult<()> {
        match code {
            0 => Ok(()),
            code => Err(BenchError::protocol(&self.address, format!("{what}: error code {code}"))),
        }
    }
}

/// Everything of a produce request before its batches; the correlation id lies at 8..12.
pub(crate) fn produce_head(topic: &str, partition: u32, acks: Acks, records_bytes: usize) -> Vec<u8> {
    let mut body = Body::default();
    let acks = match acks {
        Acks::All => -1,
        Acks::Leader => 1,
        Acks::None => 0,
    };
    body.i16(-1).i16(acks).i32(PATIENCE.as_millis() as i32); // no transaction
    body.i32(1).text(topic).i32(1).i32(partition as i32).i32(records_bytes as i32);
    let mut frame = Body::default();
    head(&mut frame, PRODUCE, 0, body.0.len() + records_bytes);
    frame.0.extend_from_slice(&body.0);
    frame.0
}

/// The error code of a produce answer's body (one topic, one partition); `None` if it is cut short.
pub(crate) fn produce_error(body: &[u8]) -> Option<i16> {
    let mut answer = Answer::new(body);
    answer.i32();
    answer.text();
    answer.i32();
    answer.i32();
    let code = answer.i16();
    answer.is_sound().then_some(code)
}

fn head(frame: &mut Body, (key, version): (i16, i16), correlation_id: u32, body_bytes: usize) {
    const CLIENT: &str = "corelog-bench";
    let length = 2 + 2 + 4 + 2 + CLIENT.len() + body_bytes;
    frame.i32(length as i32).i16(key).i16(version).i32(correlation_id as i32).text(CLIENT);
}

/// Bytes of a request, big-endian.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn i8(&mut self, value: i8) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn i16(&mut self, value: i16) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn text(&mut self, text: &str) -> &mut Self {
        self.i16(text.len() as i16);
        self.0.extend(text.as_bytes());
        self
    }
}

/// Reads an answer; what is missing reads as zero and is noted.
struct Answer<'a> {
    rest: &'a [u8],
    is_short: bool,
}

impl<'a> Answer<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, is_short: false }
    }

    fn is_sound(&self) -> bool {
        !self.is_short
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.rest.split_first_chunk::<N>() else {
            self.is_short = true;
            self.rest = &[];
            return [0; N];
        };
        self.rest = rest;
        *first
    }

    fn i8(&mut self) -> i8 {
        i8::from_be_bytes(self.take())
    }
    fn i16(&mut self) -> i16 {
        i16::from_be_bytes(self.take())
    }
    fn i32(&mut self) -> i32 {
        i32::from_be_bytes(self.take())
    }

    /// Length of an array, never more than there are bytes for.
    fn count(&mut self) -> usize {
        usize::try_from(self.i32()).unwrap_or(0).min(self.rest.len())
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.i16()).ok()?;
        let Some((text, rest)) = self.rest.split_at_checked(length) else {
            self.is_short = true;
            self.rest = &[];
            return None;
        };
        self.rest = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_produce_frame_says_its_length_and_leaves_room_for_the_correlation_id() {
        let head = produce_head("t", 3, Acks::All, 1000);
        let length = i32::from_be_bytes(head[..4].try_into().expect("four bytes")) as usize;
        assert_eq!(length + 4, head.len() + 1000);
        assert_eq!(&head[4..8], [0, 0, 0, 7], "api key and version");
        assert_eq!(&head[8..12], [0; 4]);
        assert_eq!(&head[head.len() - 4..], 1000_i32.to_be_bytes());
    }

    #[test]
    fn a_produce_answer_yields_its_code_and_a_short_one_none() {
        let mut body = Body::default();
        body.i32(1).text("t").i32(1).i32(0).i16(6);
        assert_eq!(produce_error(&body.0), Some(6));
        assert_eq!(produce_error(&body.0[..9]), None);
        assert_eq!(produce_error(&[]), None);
    }
}
