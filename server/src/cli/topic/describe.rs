//! What `corelog topic describe` shows: options, and for each partition its leader, replicas, offsets and sizes.

use corelog_client::admin::Admin;
use corelog_schemas::messages::{PartitionDescription, ReplicaDescription, TopicDescription, TopicOption};
use serde_json::{Value, json};

use crate::cli::CliResult;
use crate::cli::cluster::lag_text;
use crate::cli::connect::{refused, request_error};
use crate::cli::output::{Output, bytes_text};

pub(super) async fn describe(admin: &Admin, names: &[String], json: bool, out: &mut Output) -> CliResult {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let topics = admin.describe_topics(&names).await;
    let topics = topics.map_err(|error| request_error("cannot describe topics", &error))?;
    let mut found = Vec::new();
    for (name, topic) in names.iter().zip(topics) {
        found.push(topic.map_err(|failure| refused(&format!("cannot describe topic {name}"), &failure))?);
    }
    if json {
        return out.json(&Value::Array(found.iter().map(topic_json).collect()));
    }
    for (index, topic) in found.iter().enumerate() {
        if index > 0 {
            out.line("")?;
        }
        print_topic(topic, out)?;
    }
    Ok(())
}

fn topic_json(topic: &TopicDescription) -> Value {
    let options: serde_json::Map<String, Value> = topic
        .options
        .iter()
        .map(|o| (o.key.clone(), json!({ "value": o.value, "is_default": o.is_default })))
        .collect();
    let partitions: Vec<Value> = topic
        .partitions
        .iter()
        .map(|p| {
            json!({
                "partition": p.partition,
                "leader_node": p.leader_node,
                "leader_shard": p.leader_shard,
                "leader_epoch": p.leader_epoch,
                "log_start_offset": p.log_start_offset,
                "high_watermark": p.high_watermark,
                "log_end_offset": p.log_end_offset,
                "durable_end_offset": p.durable_end_offset,
                "log_bytes": p.log_bytes,
                "segments": p.segments,
                "data_dir": p.data_dir,
                "replicas": p.replicas.iter().map(replica_json).collect::<Vec<_>>(),
                "error": p.failure.as_ref().map(ToString::to_string),
            })
        })
        .collect();
    json!({
        "topic": topic.name,
        "id": topic.topic_id.map(|id| corelog_client::TopicId(id).to_string()),
        "replication_factor": topic.replication_factor,
        "created_ms": topic.created_ms,
        "options": options,
        "partitions": partitions,
    })
}

fn print_topic(topic: &TopicDescription, out: &mut Output) -> CliResult {
    let id = topic.topic_id.map(|id| corelog_client::TopicId(id).to_string()).unwrap_or_default();
    out.line(format!("topic {}  id {id}", topic.name))?;
    let (set, default): (Vec<_>, Vec<_>) = topic.options.iter().partition(|option| !option.is_default);
    let text = |options: &[&TopicOption]| {
        let each = options.iter().map(|o| format!("{}={}", o.key, o.value.as_deref().unwrap_or("")));
        each.collect::<Vec<_>>().join(" ")
    };
    out.line(format!("  set      {}", if set.is_empty() { "(nothing)".to_owned() } else { text(&set) }))?;
    out.line(format!("  default  {}", text(&default)))?;
    let offset = |offset: Option<u64>| offset.map_or_else(|| "-".to_owned(), |o| o.to_string());
    let row = |p: &PartitionDescription| {
        let is_led = p.replicas.is_empty() || p.replicas.iter().any(|replica| replica.is_leader);
        vec![
            p.partition.to_string(),
            if is_led { format!("{}/{}", p.leader_node, p.leader_shard) } else { "none".to_owned() },
            p.leader_epoch.to_string(),
            nodes(&p.replicas, |_| true),
            nodes(&p.replicas, |replica| replica.in_sync),
            offset(p.log_start_offset),
            offset(p.high_watermark),
            offset(p.durable_end_offset),
            bytes_text(p.log_bytes),
            p.segments.to_string(),
            p.failure.as_ref().map_or_else(|| p.data_dir.clone(), ToString::to_string),
        ]
    };
    let heads = [
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "IN SYNC",
        "START",
        "END",
        "DURABLE",
        "SIZE",
        "SEGMENTS",
        "DATA DIRECTORY",
    ];
    let rows: Vec<Vec<String>> = topic.partitions.iter().map(row).collect();
    out.table(&heads, &rows)?;
    for partition in &topic.partitions {
        for replica in partition.replicas.iter().filter(|replica| is_told(replica)) {
            out.line(format!("  partition {}, {}", partition.partition, trouble_text(replica)))?;
        }
    }
    Ok(())
}

fn nodes(replicas: &[ReplicaDescription], wanted: impl Fn(&ReplicaDescription) -> bool) -> String {
    let nodes = replicas.iter().filter(|replica| wanted(replica)).map(|replica| replica.node.to_string());
    nodes.collect::<Vec<_>>().join(",")
}

/// Whether there is something to say of a replica beyond that it is in sync.
fn is_told(replica: &ReplicaDescription) -> bool {
    !replica.in_sync || !replica.is_live || !replica.trouble.is_empty()
}

fn trouble_text(replica: &ReplicaDescription) -> String {
    let state = if replica.in_sync { "in sync" } else { "out of sync" };
    let mut text = format!("node {}: {state}, {}", replica.node, lag_text(replica));
    if !replica.trouble.is_empty() {
        text.push_str(", ");
        text.push_str(&replica.trouble);
    }
    text
}

fn replica_json(replica: &ReplicaDescription) -> Value {
    json!({
        "node": replica.node, "shard": replica.shard, "is_leader": replica.is_leader,
        "in_sync": replica.in_sync, "is_live": replica.is_live, "log_end_offset": replica.log_end_offset,
        "lag_records": replica.lag_records, "lag_ms": replica.lag_ms,
        "trouble": (!replica.trouble.is_empty()).then_some(&replica.trouble),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_told_of_only_if_something_is_wrong() {
        let sound =
            ReplicaDescription { node: 2, in_sync: true, is_live: true, ..ReplicaDescription::default() };
        assert!(!is_told(&sound));
        let lagging = ReplicaDescription { in_sync: false, lag_records: Some(7), ..sound.clone() };
        assert!(is_told(&lagging));
        assert_eq!(trouble_text(&lagging), "node 2: out of sync, 7 records");
        let failed = ReplicaDescription { trouble: "its disk has failed".into(), ..sound };
        assert!(is_told(&failed));
        assert!(trouble_text(&failed).ends_with("its disk has failed"));
    }
}
