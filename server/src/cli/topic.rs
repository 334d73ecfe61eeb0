//! `corelog topic`: create, list, describe, alter, add-partitions, elect-unclean, delete-records, delete.

mod describe;

use std::io::{IsTerminal, Write};

use corelog_client::admin::{Admin, ChangedTopic};
use corelog_client::{Failure, Offset, RequestError};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{ElectLeader, ElectionKind, NewTopic, TopicOption};
use serde_json::{Value, json};

use super::connect::{ServerArgs, block_on, refused, request_error};
use super::output::{Output, count_text, counted};
use super::{CliError, CliResult, Exit};

/// `corelog topic ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corelog topic create orders --partitions 8
  corelog topic describe orders --json")]
pub struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum TopicCommand {
    /// Create a topic.
    #[command(
        after_help = "Example:\n  corelog topic create orders --partitions 8 --replicas 3 --option min_insync_replicas=2"
    )]
    Create {
        /// Its name.
        name: String,
        /// How many partitions; the server's default if not given.
        #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        partitions: Option<u32>,
        /// Replicas of each partition, on as many nodes; the cluster's default if not given.
        #[arg(long, alias = "replication-factor", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        replicas: Option<u16>,
        /// An option of the topic; may be given several times.
        #[arg(long = "option", short = 'o', value_name = "KEY=VALUE", value_parser = key_value)]
        options: Vec<(String, String)>,
        /// Succeed if the topic is there already, whatever its options are.
        #[arg(long)]
        if_not_exists: bool,
        /// Check alone, create nothing.
        #[arg(long)]
        validate_only: bool,
    },
    /// List topics.
    #[command(after_help = "Example:\n  corelog topic list --prefix app.")]
    List {
        /// Only those whose names begin with this.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Show topics: options, partitions, leaders, replicas and what they lack, offsets, sizes.
    #[command(after_help = "Example:\n  corelog topic describe orders --json")]
    Describe {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Change options of a topic, or its number of replicas.
    #[command(after_help = "\
Examples:
  corelog topic alter orders --set retention_ms=3600000 --reset flush
  corelog topic alter orders --replicas 3")]
    Alter {
        /// Its name.
        name: String,
        /// A new value; may be given several times.
        #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
        set: Vec<(String, String)>,
        /// Back to the default; may be given several times.
        #[arg(long, value_name = "KEY")]
        reset: Vec<String>,
        /// How many replicas each partition is to have; new ones are filled while everything goes on.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "validate_only")]
        replicas: Option<u16>,
        /// Check alone, change nothing.
        #[arg(long)]
        validate_only: bool,
    },
    /// Add partitions to a topic. Keys then go to other partitions than before.
    #[command(after_help = "Example:\n  corelog topic add-partitions orders --total 16")]
    AddPartitions {
        /// Its name.
        name: String,
        /// How many there are to be in all.
        #[arg(long, value_name = "N")]
        total: u32,
        /// Check alone, change nothing.
        #[arg(long)]
        validate_only: bool,
    },
    /// Let a replica lead that may lack acked records, because none that has them all can. They are given up.
    #[command(after_help = "Example:\n  corelog topic elect-unclean orders 3 --yes-lose-data")]
    ElectUnclean {
        /// The topic.
        name: String,
        /// The partition.
        partition: u32,
        /// The node whose replica is to lead; the best there is if not given.
        #[arg(long)]
        node: Option<u32>,
        /// You know that records may be lost, and that consumers are told to go back.
        #[arg(long)]
        yes_lose_data: bool,
    },
    /// Delete the records of a topic before an offset.
    #[command(
        after_help = "Examples:\n  corelog topic delete-records orders --partition 3 --before 1000\n  \
                      corelog topic delete-records orders --all"
    )]
    DeleteRecords {
        /// Its name.
        name: String,
        /// Only this partition; all of them if not given.
        #[arg(long, short)]
        partition: Option<u32>,
        /// The first offset that is kept.
        #[arg(long, value_name = "OFFSET", required_unless_present = "all")]
        before: Option<u64>,
        /// Everything that can be read now.
        #[arg(long, conflicts_with = "before")]
        all: bool,
    },
    /// Delete topics with all their records.
    #[command(after_help = "Example:\n  corelog topic delete orders --yes")]
    Delete {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        /// Succeed if a topic is not there.
        #[arg(long)]
        if_exists: bool,
        /// Do not ask; nobody is asked if standard input is no terminal.
        #[arg(long, short)]
        yes: bool,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Runs one of the topic commands.
pub fn run(args: TopicArgs) -> CliResult {
    if let TopicCommand::Delete { names, yes: false, .. } = &args.command {
        confirm(names)?;
    }
    block_on(async move {
        let admin = args.server.connect("topic").await?.admin();
        let mut out = Output::stdout();
        execute(&admin, args.command, args.json, &mut out).await?;
        out.flush()
    })
}

async fn execute(admin: &Admin, command: TopicCommand, json: bool, out: &mut Output) -> CliResult {
    match command {
        TopicCommand::Create { name, partitions, replicas, options, if_not_exists, validate_only } => {
            let topic = NewTopic {
                name: name.clone(),
                partitions: partitions.unwrap_or(0),
                replication_factor: replicas.unwrap_or(0),
                options: options.into_iter().map(|(key, value)| option(key, Some(value))).collect(),
            };
            let result = only(admin.create_topics(vec![topic], validate_only).await)?;
            create_result(&name, result, if_not_exists, validate_only, json, out)
        }
        TopicCommand::List { prefix } => list(admin, &prefix, json, out).await,
        TopicCommand::Describe { names } => describe::describe(admin, &names, json, out).await,
        TopicCommand::ElectUnclean { name, partition, node, yes_lose_data } => {
            elect_unclean(admin, &name, partition, node, yes_lose_data, json, out).await
        }
        TopicCommand::Alter { name, set, reset, replicas, validate_only } => {
            if let Some(replicas) = replicas {
                set_replicas(admin, &name, replicas, json, out).await?;
            }
            if set.is_empty() && reset.is_empty() {
                return match replicas {
                    Some(_) => Ok(()),
                    None => Err(CliError::usage(
                        "nothing to alter: give --set KEY=VALUE, --reset KEY or --replicas N",
                    )),
                };
            }
            let set = set.into_iter().map(|(key, value)| option(key, Some(value)));
            let reset = reset.into_iter().map(|key| option(key, None));
            let what = format!("cannot alter topic {name}");
            let changed = admin.alter_topic(&name, set.chain(reset).collect(), validate_only).await;
            let changed = changed.map_err(|error| request_error(&what, &error))?;
            print_changed(&changed, done("altered", validate_only), json, out)
        }
        TopicCommand::AddPartitions { name, total, validate_only } => {
            let what = format!("cannot add partitions to topic {name}");
            let changed = admin.create_partitions(&name, total, validate_only).await;
            let changed = changed.map_err(|error| request_error(&what, &error))?;
            print_changed(&changed, done("extended", validate_only), json, out)
        }
        TopicCommand::DeleteRecords { name, partition, before, all: _ } => {
            delete_records(admin, &name, partition, before.map(Offset), json, out).await
        }
        TopicCommand::Delete { names, if_exists, .. } => delete(admin, &names, if_exists, json, out).await,
    }
}

fn option(key: String, value: Option<String>) -> TopicOption {
    TopicOption { key, value, is_default: false }
}

fn done(verb: &'static str, validate_only: bool) -> &'static str {
    if validate_only { "valid, nothing changed" } else { verb }
}

fn only(
    results: Result<Vec<Result<ChangedTopic, Failure>>, RequestError>,
) -> CliResult<Result<ChangedTopic, Failure>> {
    let results = results.map_err(|error| request_error("cannot create the topic", &error))?;
    let first = results.into_iter().next();
    first.ok_or_else(|| CliError::new(Exit::Failure, "the server's answer holds no result"))
}

fn create_result(
    name: &str,
    result: Result<ChangedTopic, Failure>,
    if_not_exists: bool,
    validate_only: bool,
    json: bool,
    out: &mut Output,
) -> CliResult {
    match result {
        Ok(created) => print_changed(&created, done("created", validate_only), json, out),
        Err(failure) if if_not_exists && failure.code == ErrorCode::TopicAlreadyExists => {
            if json {
                return out.json(&json!({ "topic": name, "result": "exists" }));
            }
            out.line(format!("topic {name} exists"))
        }
        Err(failure) => Err(refused(&format!("cannot create topic {name}"), &failure)),
    }
}

fn print_changed(changed: &ChangedTopic, result: &str, json: bool, out: &mut Output) -> CliResult {
    let id = changed.id.map(|id| id.to_string());
    if json {
        let (topic, partitions) = (&changed.name, changed.partitions);
        return out.json(&json!({ "topic": topic, "id": id, "partitions": partitions, "result": result }));
    }
    out.line(format!("topic {} {result}: {}", changed.name, counted(changed.partitions.into(), "partition")))
}

async fn list(admin: &Admin, prefix: &str, json: bool, out: &mut Output) -> CliResult {
    let topics =
        admin.list_topics(prefix).await.map_err(|error| request_error("cannot list topics", &error))?;
    if json {
        let rows = topics.iter().map(|topic| {
            json!({
                "topic": topic.name,
                "id": corelog_client::TopicId(topic.topic_id).to_string(),
                "partitions": topic.partitions,
                "replication_factor": topic.replication_factor,
            })
        });
        return out.json(&Value::Array(rows.collect()));
    }
    if topics.is_empty() {
        eprintln!("no topics; `corelog topic create NAME` makes one");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = topics
        .iter()
        .map(|t| vec![t.name.clone(), t.partitions.to_string(), t.replication_factor.to_string()])
        .collect();
    out.table(&["TOPIC", "PARTITIONS", "REPLICAS"], &rows)
}

async fn set_replicas(admin: &Admin, name: &str, replicas: u16, json: bool, out: &mut Output) -> CliResult {
    let what = format!("cannot change the replicas of topic {name}");
    let change = admin.set_replicas(name, replicas).await.map_err(|error| request_error(&what, &error))?;
    if json {
        let report = json!({ "topic": name, "replicas": replicas, "was_so": change.is_unchanged });
        return out.json(&report);
    }
    out.line(format!(
        "topic {name} has {} from now on; `corelog topic describe {name}` shows how far they are",
        counted(replicas.into(), "replica")
    ))
}

async fn elect_unclean(
    admin: &Admin,
    name: &str,
    partition: u32,
    node: Option<u32>,
    yes_lose_data: bool,
    json: bool,
    out: &mut Output,
) -> CliResult {
    if !yes_lose_data {
        return Err(CliError::usage(format!(
            "an unclean election of {name}/{partition} gives up records that were acked, for good"
        ))
        .advise("start a node that has them if there is one; else say --yes-lose-data"));
    }
    let what = format!("cannot elect a leader of {name}/{partition}");
    let wanted = ElectLeader { topic: name.into(), partition, node };
    let results = admin.elect_leaders(ElectionKind::Unclean, vec![wanted]).await;
    let results = results.map_err(|error| request_error(&what, &error))?;
    let result = results.into_iter().next();
    let result = result.ok_or_else(|| CliError::new(Exit::Failure, "the server's answer holds no result"))?;
    if let Some(failure) = &result.failure {
        return Err(refused(&what, failure));
    }
    if json {
        return out.json(&super::cluster::election_json(&result));
    }
    let by = result.leader_node.map_or_else(String::new, |node| format!(" by node {node}"));
    out.line(format!("{name}/{partition} is led{by}; what it lacked is given up, and consumers are told"))
}

async fn delete_records(
    admin: &Admin,
    name: &str,
    partition: Option<u32>,
    before: Option<Offset>,
    json: bool,
    out: &mut Output,
) -> CliResult {
    let what = format!("cannot delete records of topic {name}");
    let partitions: Vec<u32> = match partition {
        Some(partition) => vec![partition],
        None => {
            let count = admin.partition_count(name).await;
            (0..count.map_err(|error| request_error(&what, &error))?).collect()
        }
    };
    let wanted: Vec<(u32, Option<Offset>)> = partitions.iter().map(|&p| (p, before)).collect();
    let mut rows = Vec::new();
    for (partition, result) in partitions.iter().zip(admin.delete_records(name, &wanted).await) {
        let start =
            result.map_err(|error| request_error(&format!("{what}, partition {partition}"), &error))?;
        rows.push((*partition, start.0));
    }
    if json {
        let rows = rows.iter().map(|(p, start)| json!({ "partition": p, "log_start_offset": start }));
        return out.json(&Value::Array(rows.collect()));
    }
    for (partition, start) in rows {
        out.line(format!("{name}/{partition} now starts at offset {}", count_text(start)))?;
    }
    Ok(())
}

async fn delete(admin: &Admin, names: &[String], if_exists: bool, json: bool, out: &mut Output) -> CliResult {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = admin.delete_topics(&names).await;
    let results = results.map_err(|error| request_error("cannot delete topics", &error))?;
    let mut rows = Vec::new();
    let mut failed = None;
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(_) => rows.push((*name, "deleted")),
            Err(failure) if if_exists && failure.code == ErrorCode::UnknownTopicOrPartition => {
                rows.push((*name, "not there"));
            }
            Err(failure) => {
                failed = Some(refused(&format!("cannot delete topic {name}"), &failure));
            }
        }
    }
    if json {
        let rows = rows.iter().map(|(topic, result)| json!({ "topic": topic, "result": result }));
        out.json(&Value::Array(rows.collect()))?;
    } else {
        for (name, result) in rows {
            out.line(format!("topic {name} {result}"))?;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Asks a person; programs (no terminal) are not asked.
fn confirm(names: &[String]) -> CliResult {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    eprint!("delete {} with all records? [y/N] ", names.join(", "));
    std::io::stderr().flush().map_err(CliError::output)?;
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(CliError::new(Exit::Failure, "nothing deleted"))
}
