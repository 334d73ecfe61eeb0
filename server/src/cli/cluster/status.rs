//! `corelog cluster status`: the picture of the cluster, once or again and again.
//!
//! Owns: its text and its JSON. Lags are asked of the leaders, for the partitions that are listed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use corelog_client::admin::Admin;
use corelog_schemas::messages::{
    ClusterNode, DescribeClusterResponse, NodeState, PartitionHealth, ReplicaDescription,
};
use serde_json::{Value, json};

use crate::cli::connect::request_error;
use crate::cli::output::{Output, count_text, counted};
use crate::cli::{CliError, CliResult, Exit};

/// Topics whose leaders are asked for lags: each is a question to several nodes.
const LAG_TOPICS_MAX: usize = 20;
/// Back to the upper left corner, and nothing behind.
const CLEAR_SCREEN: &str = "\x1b[H\x1b[2J";

/// Lags by topic, partition and node, as leaders tell them.
type Lags = BTreeMap<(String, u32, u32), ReplicaDescription>;

/// Shows the status once, or every `interval`.
pub(super) async fn run(
    admin: &Admin,
    interval: Option<Duration>,
    check: bool,
    partitions_max: u32,
    json: bool,
    out: &mut Output,
) -> CliResult {
    loop {
        let picture = admin.describe_cluster(partitions_max).await;
        let picture = match (picture, interval) {
            (Ok(picture), _) => picture,
            // Who watches wants to see it come back.
            (Err(error), Some(interval)) => {
                request_error("no answer", &error).report();
                tokio::time::sleep(interval).await;
                continue;
            }
            (Err(error), None) => return Err(request_error("cannot describe the cluster", &error)),
        };
        let lags = lags(admin, &picture).await;
        if json {
            out.json(&to_json(&picture, &lags))?;
        } else {
            if interval.is_some() && std::io::stdout().is_terminal() {
                out.bytes(CLEAR_SCREEN.as_bytes())?;
            }
            print(&picture, &lags, now_ms(), out)?;
        }
        out.flush()?;
        match interval {
            Some(interval) => tokio::time::sleep(interval).await,
            None if check => return verdict(&picture),
            None => return Ok(()),
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What replicas lack, of the partitions that are listed; nothing where a leader does not answer.
async fn lags(admin: &Admin, picture: &DescribeClusterResponse) -> Lags {
    let topics: BTreeSet<&str> = picture.unhealthy.iter().map(|p| p.topic.as_str()).collect();
    let names: Vec<&str> = topics.into_iter().take(LAG_TOPICS_MAX).collect();
    let mut lags = Lags::new();
    if names.is_empty() {
        return lags;
    }
    let Ok(described) = admin.describe_topics(&names).await else { return lags };
    for topic in described.into_iter().flatten() {
        for partition in topic.partitions {
            for replica in partition.replicas {
                lags.insert((topic.name.clone(), partition.partition, replica.node), replica);
            }
        }
    }
    lags
}

/// Whether all is as it should be.
fn verdict(picture: &DescribeClusterResponse) -> CliResult {
    let is_absent = |node: &&ClusterNode| matches!(node.state, NodeState::Gone | NodeState::Suspected);
    let absent = picture.nodes.iter().filter(is_absent).count();
    let mut wrong = Vec::new();
    if absent > 0 {
        wrong.push(format!("{} not running", counted(absent as u64, "node")));
    }
    for (count, what) in [
        (picture.offline, "without a leader"),
        (picture.under_replicated, "with a replica out of sync"),
        (picture.below_min_insync, "below min_insync_replicas"),
    ] {
        if count > 0 {
            wrong.push(format!("{} {what}", counted(count.into(), "partition")));
        }
    }
    if picture.is_isolated {
        wrong.push(format!("node {} has no session with the coordination service", picture.answering_node));
    }
    if wrong.is_empty() { Ok(()) } else { Err(CliError::new(Exit::Failure, wrong.join(", "))) }
}

fn print(picture: &DescribeClusterResponse, lags: &Lags, now_ms: i64, out: &mut Output) -> CliResult {
    let controller = picture.controller_node.map_or_else(|| "none".to_owned(), |node| format!("node {node}"));
    out.line(format!(
        "cluster {}  controller {controller} (term {})",
        picture.cluster_id, picture.controller_epoch
    ))?;
    out.line(format!(
        "{}, {}: {} without a leader, {} under-replicated, {} below min_insync_replicas, {} not led by the preferred \
         replica",
        counted(picture.topics.into(), "topic"),
        counted(picture.partitions.into(), "partition"),
        picture.offline,
        picture.under_replicated,
        picture.below_min_insync,
        picture.not_preferred,
    ))?;
    if picture.is_isolated {
        let node = picture.answering_node;
        out.line(format!("! node {node} answers without a session: what it says may be old"))?;
    }
    out.line("")?;
    let heads =
        ["NODE", "STATE", "ADDRESS", "SHARDS", "DISKS", "LEADERS", "REPLICAS", "IN SYNC", "UP", "SOFTWARE"];
    let rows: Vec<Vec<String>> = picture.nodes.iter().map(|node| node_row(node, now_ms)).collect();
    out.table(&heads, &rows)?;
    if !picture.unhealthy.is_empty() {
        out.line("")?;
        let rows: Vec<Vec<String>> = picture.unhealthy.iter().map(|p| partition_row(p, lags)).collect();
        let heads = ["NOT WELL", "LEADER", "EPOCH", "REPLICAS", "IN SYNC", "LACKS", "TROUBLE"];
        out.table(&heads, &rows)?;
        let all = picture.offline.max(picture.under_replicated) as usize;
        if all > picture.unhealthy.len() {
            out.line(format!("and {} more; --partitions-max shows them", all - picture.unhealthy.len()))?;
        }
    }
    if picture.nodes.len() > 1 && !picture.topics_with_one_replica.is_empty() {
        let names = picture.topics_with_one_replica.iter().take(10).map(String::as_str).collect::<Vec<_>>();
        out.line("")?;
        out.line(format!(
            "! {} with one replica, lost with one disk: {}{}",
            counted(picture.topics_with_one_replica.len() as u64, "topic"),
            names.join(", "),
            if picture.topics_with_one_replica.len() > names.len() { ", ..." } else { "" },
        ))?;
        out.line("  -> `corelog topic alter NAME --replicas 3` gives them more")?;
    }
    for problem in &picture.problems {
        out.line(format!("! {problem}"))?;
    }
    Ok(())
}

fn node_row(node: &ClusterNode, now_ms: i64) -> Vec<String> {
    let is_running = node.state != NodeState::Gone;
    let shown = |text: String| if is_running { text } else { "-".to_owned() };
    let state = match node.is_drained {
        true => format!("{}, drained", node.state.name()),
        false => node.state.name().to_owned(),
    };
    vec![
        node.node.to_string(),
        state,
        shown(format!("{}:{}", node.host, node.port)),
        shown(node.shards.to_string()),
        shown(node.data_dirs.to_string()),
        node.leaders.to_string(),
        node.replicas.to_string(),
        node.replicas_in_sync.to_string(),
        shown(duration_text(now_ms.saturating_sub(node.started_ms).max(0) as u64)),
        shown(node.software.clone()),
    ]
}

fn partition_row(partition: &PartitionHealth, lags: &Lags) -> Vec<String> {
    let list = |nodes: &[u32]| nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let lagging = partition.replicas.iter().filter(|node| !partition.in_sync.contains(node)).map(|&node| {
        let lag = lags.get(&(partition.topic.clone(), partition.partition, node));
        format!("node {node}: {}", lag.map_or_else(|| "unknown".to_owned(), lag_text))
    });
    let troubles = partition.troubles.iter().map(|t| format!("node {} {}: {}", t.node, t.kind, t.reason));
    let mut trouble = troubles.collect::<Vec<_>>().join("; ");
    if partition.in_sync.len() < usize::from(partition.min_insync_replicas) {
        let below = format!("below min_insync_replicas {}", partition.min_insync_replicas);
        trouble = if trouble.is_empty() { below } else { format!("{below}; {trouble}") };
    }
    vec![
        format!("{}/{}", partition.topic, partition.partition),
        partition.leader_node.map_or_else(|| "none".to_owned(), |node| node.to_string()),
        partition.leader_epoch.to_string(),
        list(&partition.replicas),
        list(&partition.in_sync),
        lagging.collect::<Vec<_>>().join("; "),
        trouble,
    ]
}

/// What a replica lacks, for people.
pub(in crate::cli) fn lag_text(replica: &ReplicaDescription) -> String {
    if !replica.is_live {
        return "not running".to_owned();
    }
    match (replica.lag_records, replica.lag_ms) {
        (Some(records), Some(ms)) if ms >= 1_000 => {
            format!("{}, for {}", counted(records, "record"), duration_text(ms))
        }
        (Some(records), _) => counted(records, "record"),
        (None, _) => "not following yet".to_owned(),
    }
}

/// A span of time, in its largest unit.
fn duration_text(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", count_text(seconds / 86_400)),
    }
}

fn to_json(picture: &DescribeClusterResponse, lags: &Lags) -> Value {
    let nodes: Vec<Value> = picture.nodes.iter().map(node_json).collect();
    let unhealthy: Vec<Value> = picture.unhealthy.iter().map(|p| health_json(p, lags)).collect();
    json!({
        "cluster_id": picture.cluster_id,
        "version": picture.version,
        "answering_node": picture.answering_node,
        "is_isolated": picture.is_isolated,
        "controller_node": picture.controller_node,
        "controller_epoch": picture.controller_epoch,
        "nodes": nodes,
        "topics": picture.topics,
        "partitions": picture.partitions,
        "offline": picture.offline,
        "under_replicated": picture.under_replicated,
        "below_min_insync": picture.below_min_insync,
        "not_preferred": picture.not_preferred,
        "unhealthy": unhealthy,
        "topics_with_one_replica": picture.topics_with_one_replica,
        "problems": picture.problems,
    })
}

fn node_json(node: &ClusterNode) -> Value {
    json!({
        "node": node.node, "state": node.state.name(), "is_drained": node.is_drained,
        "software": node.software, "started_ms": node.started_ms, "host": node.host, "port": node.port,
        "shards": node.shards, "data_dirs": node.data_dirs, "replicas": node.replicas,
        "replicas_in_sync": node.replicas_in_sync, "leaders": node.leaders,
    })
}

fn health_json(partition: &PartitionHealth, lags: &Lags) -> Value {
    let replicas: Vec<Value> = partition
        .replicas
        .iter()
        .map(|&node| {
            let lag = lags.get(&(partition.topic.clone(), partition.partition, node));
            json!({
                "node": node,
                "in_sync": partition.in_sync.contains(&node),
                "lag_records": lag.and_then(|lag| lag.lag_records),
                "lag_ms": lag.and_then(|lag| lag.lag_ms),
            })
        })
        .collect();
    let troubles: Vec<Value> = partition
        .troubles
        .iter()
        .map(|t| json!({ "node": t.node, "kind": t.kind, "reason": t.reason }))
        .collect();
    json!({
        "topic": partition.topic, "partition": partition.partition,
        "leader_node": partition.leader_node, "leader_epoch": partition.leader_epoch,
        "replicas": replicas, "min_insync_replicas": partition.min_insync_replicas, "troubles": troubles,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> DescribeClusterResponse {
        DescribeClusterResponse {
            cluster_id: "c".into(),
            version: 1,
            answering_node: 1,
            is_isolated: false,
            controller_node: Some(1),
            controller_epoch: 3,
            nodes: Vec::new(),
            topics: 1,
            partitions: 1,
            offline: 0,
            under_replicated: 0,
            below_min_insync: 0,
            not_preferred: 0,
            unhealthy: Vec::new(),
            topics_with_one_replica: Vec::new(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_check_fails_for_anything_that_is_not_well() {
        assert!(verdict(&picture()).is_ok());
        let bad = [
            DescribeClusterResponse { offline: 1, ..picture() },
            DescribeClusterResponse { under_replicated: 1, ..picture() },
            DescribeClusterResponse { below_min_insync: 1, ..picture() },
            DescribeClusterResponse { is_isolated: true, ..picture() },
        ];
        for bad in bad {
            assert_eq!(verdict(&bad).expect_err("not well").code(), Exit::Failure as u8);
        }
        let balanced = DescribeClusterResponse { not_preferred: 1, ..picture() };
        assert!(verdict(&balanced).is_ok(), "who leads is a matter of load, not of safety");
    }

    #[test]
    fn what_a_replica_lacks_is_said_in_a_few_words() {
        let replica = ReplicaDescription { is_live: true, ..ReplicaDescription::default() };
        let of =
            |lag_records, lag_ms| lag_text(&ReplicaDescription { lag_records, lag_ms, ..replica.clone() });
        assert_eq!(of(Some(1), Some(0)), "1 record");
        assert_eq!(of(Some(1_200), Some(65_000)), "1,200 records, for 65 s");
        assert_eq!(of(None, None), "not following yet");
        assert_eq!(lag_text(&ReplicaDescription::default()), "not running");
        assert_eq!(duration_text(3 * 86_400_000), "3 d");
        assert_eq!(duration_text(200_000), "3 min");
    }

    #[test]
    fn a_partition_names_what_lacks_and_why() {
        let health = PartitionHealth {
            topic_id: 1,
            topic: "t".into(),
            partition: 3,
            leader_node: None,
            leader_epoch: 4,
            replicas: vec![1, 2],
            in_sync: vec![1],
            min_insync_replicas: 2,
            troubles: Vec::new(),
        };
        let row = partition_row(&health, &Lags::new());
        assert_eq!(row[..5], ["t/3", "none", "4", "1,2", "1"]);
        assert_eq!(row[5], "node 2: unknown");
        assert_eq!(row[6], "below min_insync_replicas 2");
    }
}
