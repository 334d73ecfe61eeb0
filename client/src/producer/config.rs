//! Settings of a producer.

use corelog_schemas::messages::Acks;

use super::delivery::{ReportCallback, RetryCallback};
use crate::compression::Compression;
use crate::partitioner::KeylessRule;
use crate::retry::RetryPolicy;

/// Settings of a producer. Units are in the names.
#[derive(Clone)]
pub struct ProducerConfig {
    /// When a record counts as delivered. All by default: as safe as the topic's flush policy says.
    pub acks: Acks,
    /// A batch is closed when it would grow beyond this, before compression. 128 KiB: small beside the limit of
    /// a topic (1 MiB), large enough that headers and checksums cost nothing.
    pub batch_bytes: usize,
    /// How long a batch that is not full waits for more records. 0: it leaves as soon as its partition has no
    /// request on its way, so batches grow by themselves under load.
    pub linger_ms: u64,
    /// Codec of the batches.
    pub compression: Compression,
    /// How records without a key are spread.
    pub keyless_rule: KeylessRule,
    /// Tries and pauses. Order is kept whatever is retried.
    pub retry: RetryPolicy,
    /// A record that is not acked so long after `send` has failed (a request on its way is still waited for).
    pub delivery_timeout_ms: u64,
    /// Memory for records that are not acked. At the limit `send` waits. Compression and requests on their way
    /// use this memory too, up to twice the amount for moments.
    pub buffer_bytes_max: usize,
    /// Most bytes of one partition in one request: a request carries all closed batches of a partition up to
    /// here. One partition has one request on its way, so this over the round trip bounds its rate.
    pub partition_request_bytes_max: usize,
    /// Most bytes of one request.
    pub request_bytes_max: usize,
    /// Requests on their way to one shard, each for other partitions.
    pub in_flight_requests_max: usize,
    /// Whether a batch that is sent again is recognized by the server, so that a lost ack makes no copy. Each producer has
    /// a random identity of its own for that. Without effect with `acks` 0.
    pub idempotent: bool,
    /// Called with the outcome of each batch, in order per partition.
    pub on_delivery: Option<ReportCallback>,
    /// Called with each failure that is waited out: for whoever would tell a person why nothing moves.
    pub on_retry: Option<RetryCallback>,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            batch_bytes: 128 << 10,
            linger_ms: 0,
            compression: Compression::None,
            keyless_rule: KeylessRule::Sticky,
            retry: RetryPolicy::default(),
            delivery_timeout_ms: 120_000,
            buffer_bytes_max: 64 << 20,
            partition_request_bytes_max: 2 << 20,
            request_bytes_max: 4 << 20,
            in_flight_requests_max: 8,
            idempotent: true,
            on_delivery: None,
            on_retry: None,
        }
    }
}

impl std::fmt::Debug for ProducerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProducerConfig")
            .field("acks", &self.acks)
            .field("batch_bytes", &self.batch_bytes)
            .field("linger_ms", &self.linger_ms)
            .field("compression", &self.compression)
            .field("keyless_rule", &self.keyless_rule)
            .field("retry", &self.retry)
            .field("delivery_timeout_ms", &self.delivery_timeout_ms)
            .field("buffer_bytes_max", &self.buffer_bytes_max)
            .field("partition_request_bytes_max", &self.partition_request_bytes_max)
            .field("request_bytes_max", &self.request_bytes_max)
            .field("in_flight_requests_max", &self.in_flight_requests_max)
            .field("idempotent", &self.idempotent)
            .finish_non_exhaustive()
    }
}

/// Settings that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerConfigError {
    /// A size or count of zero.
    #[error("{name} must be at least 1")]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// One setting must not be larger than another.
    #[error("{smaller} must not be larger than {larger}")]
    Order {
        /// The setting that is too large.
        smaller: &'static str,
        /// Its bound.
        larger: &'static str,
    },
}

impl ProducerConfig {
    /// Checks the settings against each other.
    pub fn check(&self) -> Result<(), ProducerConfigError> {
        let counts = [
            ("batch_bytes", self.batch_bytes),
            ("buffer_bytes_max", self.buffer_bytes_max),
            ("request_bytes_max", self.request_bytes_max),
            ("in_flight_requests_max", self.in_flight_requests_max),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(ProducerConfigError::Zero { name });
        }
        let order = |smaller, low, larger, high| {
            if low > high { Err(ProducerConfigError::Order { smaller, larger }) } else { Ok(()) }
        };
        let part = self.partition_request_bytes_max;
        order("batch_bytes", self.batch_bytes, "buffer_bytes_max", self.buffer_bytes_max)?;
        order("batch_bytes", self.batch_bytes, "partition_request_bytes_max", part)?;
        order("partition_request_bytes_max", part, "request_bytes_max", self.request_bytes_max)
    }
}
