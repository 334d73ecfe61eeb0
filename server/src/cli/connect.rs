//! What every command that talks to a server shares: the address, the runtime, the errors of the client as exit
//! codes with advice.

use std::future::Future;

use corelog_client::{
    Client, ClientConfig, ConsumeError, DeliveryError, ErrorCode, Failure, RequestError, SendError,
};
use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, CliResult, Exit};

/// Which server.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// Addresses of shards of some nodes, with commas between them: the first that answers tells of the others.
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:9700",
        env = "CORELOG_SERVER",
        global = true
    )]
    pub server: String,
}

impl ServerArgs {
    /// Connects, or says what to do.
    pub async fn connect(&self, client_id: &str) -> CliResult<Client> {
        let addresses: Vec<&str> = self.server.split(',').map(str::trim).collect();
        addresses.iter().try_for_each(|address| check_address(address))?;
        let mut config = ClientConfig::new(addresses);
        config.client_id = format!("corelog {client_id}");
        Client::connect(config).await.map_err(|error| request_error("cannot reach the server", &error))
    }
}

fn check_address(address: &str) -> CliResult {
    let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    match port.map(str::parse::<u16>) {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(CliError::usage(format!("--server {address:?} is not HOST:PORT"))
            .advise("for example --server 127.0.0.1:9700, or --server a:9700,b:9700")),
    }
}

/// Runs a command on a runtime of its own (one thread: a command line needs no more). Ctrl-C and SIGTERM end it with
/// the code for that; what it holds is dropped, so that a demo ends its node and removes its files.
pub fn block_on(command: impl Future<Output = CliResult>) -> CliResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::new(Exit::Failure, format!("cannot start: {error}")))?;
    let result = runtime.block_on(async {
        let listen = |kind| {
            signal(kind).map_err(|e| CliError::new(Exit::Failure, format!("cannot listen for signals: {e}")))
        };
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let mut hangup = listen(SignalKind::hangup())?;
        tokio::select! {
            result = command => result,
            _ = interrupt.recv() => Err(CliError::new(Exit::Interrupted, "interrupted")),
            _ = terminate.recv() => Err(CliError::new(Exit::Interrupted, "terminated")),
            _ = hangup.recv() => Err(CliError::new(Exit::Interrupted, "the terminal was closed")),
        }
    });
    // A thread that waits for standard input must not hold the process.
    runtime.shutdown_background();
    result
}

/// The exit code of a server's refusal, and what to do about it.
pub fn refused(what: &str, failure: &Failure) -> CliError {
    use ErrorCode as E;
    let (exit, advice) = match failure.code {
        E::UnknownTopicOrPartition | E::UnknownTopicId => {
            (Exit::NotFound, Some("`corelog topic list` shows what there is"))
        }
        E::OffsetOutOfRange => {
            (Exit::NotFound, Some("`corelog topic describe` shows the offsets that there are"))
        }
        E::TopicAlreadyExists => {
            (Exit::Refused, Some("use --if-not-exists to accept it, or `corelog topic alter`"))
        }
        E::InvalidTopicOption => {
            (Exit::Refused, Some("`corelog config reference` lists the options of topics"))
        }
        E::InvalidTopicName => {
            (Exit::Refused, Some("letters, digits, '.', '_' and '-', at most 246 characters"))
        }
        E::DiskFull => {
            (Exit::Refused, Some("free space on the data directory, or shorten the retention of a topic"))
        }
        E::BatchTooLarge => {
            (Exit::Refused, Some("raise the topic's batch_bytes_max, or send smaller records"))
        }
        E::CorruptData => (Exit::Damaged, Some("`corelog inspect DATA_DIRECTORY` says where")),
        E::StorageFailed | E::PartitionOffline => {
            (Exit::Failure, Some("the server's log says which disk has failed"))
        }
        E::Overloaded | E::ShuttingDown | E::MetadataUnavailable => (Exit::Failure, Some("try again later")),
        E::UnknownNode => (Exit::NotFound, Some("`corelog cluster status` shows all nodes")),
        E::InvalidReplica => (Exit::Refused, Some("`corelog topic describe` shows who has a replica")),
        E::NotEnoughReplicas => {
            (Exit::Refused, Some("`corelog cluster status` shows which replicas are not in sync"))
        }
        _ => (Exit::Refused, None),
    };
    let message = if failure.message.is_empty() { failure.code.text() } else { &failure.message };
    let error = CliError::new(exit, format!("{what}: {message} [{}]", failure.code.name()));
    match advice {
        Some(next) => error.advise(next),
        None => error,
    }
}

/// The exit code of a request that failed.
pub fn request_error(what: &str, error: &RequestError) -> CliError {
    match error {
        RequestError::Refused(failure) => refused(what, failure),
        RequestError::Connect(connect) => {
            let advice = "is it running? `corelog serve` starts one; --server HOST:PORT names another";
            CliError::new(Exit::Unreachable, format!("{what}: {connect}")).advise(advice)
        }
        RequestError::Disconnected { .. } | RequestError::TimedOut { .. } => {
            CliError::new(Exit::Unreachable, format!("{what}: {error}"))
        }
        RequestError::BadAnswer { .. } => CliError::new(Exit::Failure, format!("{what}: {error}")),
    }
}

/// The exit code of a record that was not taken.
pub fn send_error(what: &str, error: &SendError) -> CliError {
    match error {
        SendError::Metadata { source, .. } => request_error(what, source),
        SendError::NoSuchPartition { .. } => CliError::new(Exit::NotFound, format!("{what}: {error}")),
        SendError::RecordTooLarge { .. } => CliError::new(Exit::Usage, format!("{what}: {error}")),
        SendError::Closed => CliError::new(Exit::Failure, format!("{what}: {error}")),
    }
}

/// The exit code of a record that was not delivered.
pub fn delivery_error(what: &str, error: &DeliveryError) -> CliError {
    match error {
        DeliveryError::Refused(failure) => refused(what, failure),
        DeliveryError::GaveUp { .. } | DeliveryError::Closed => {
            CliError::new(Exit::Failure, format!("{what}: {error}"))
        }
    }
}

/// The exit code of a failed read.
pub fn consume_error(error: &ConsumeError) -> CliError {
    let what = "cannot read";
    match error {
        ConsumeError::Request(request) => request_error(what, request),
        ConsumeError::Refused { topic, partition, failure } => {
            refused(&format!("cannot read {topic}/{partition}"), failure)
        }
        ConsumeError::OffsetOutOfRange { .. } => CliError::new(Exit::NotFound, format!("{what}: {error}"))
            .advise("`corelog topic describe` shows the offsets that there are; --from earliest starts at the first"),
        ConsumeError::BadBatch { partition, next_offset, .. } => {
            let error = CliError::new(Exit::Damaged, format!("{what}: {error}"));
            match next_offset {
                Some(next) => error.advise(format!("--partition {partition} --from {next} goes on behind it")),
                None => error,
            }
        }
        ConsumeError::Truncated { .. } => CliError::new(Exit::Damaged, format!("{what}: {error}"))
            .advise("read again from there, or discard what was made of the records that are gone"),
        ConsumeError::NoSuchPartition { .. } | ConsumeError::NotAssigned { .. } => {
            CliError::new(Exit::NotFound, format!("{what}: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for good in ["127.0.0.1:9700", "localhost:1", "[::1]:9700"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in
            ["", "localhost", ":9700", "localhost:", "localhost:0", "localhost:70000", "localhost:http"]
        {
            let error = check_address(bad).expect_err(bad);
            assert_eq!(error.code(), Exit::Usage as u8, "{bad}");
        }
    }

    #[test]
    fn refusals_have_the_codes_of_the_table() {
        let code = |code: ErrorCode| refused("x", &Failure::from(code)).code();
        assert_eq!(code(ErrorCode::UnknownTopicOrPartition), 4);
        assert_eq!(code(ErrorCode::TopicAlreadyExists), 5);
        assert_eq!(code(ErrorCode::CorruptData), 6);
        assert_eq!(code(ErrorCode::Overloaded), 1);
    }
}
