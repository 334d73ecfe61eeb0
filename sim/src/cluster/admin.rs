//! What operators ask of a simulated node: the real decisions, through its agent.

use corelog_engine::{TopicId, TopicPartition};
use corelog_replication::agent::ChangeError;
use corelog_replication::cluster::ClusterState;
use corelog_replication::controller::admin::{self, NewTopic};
use corelog_replication::coordination::Op;

use super::ids::random_id;
use super::packet::{Admin, Refusal, Response};
use super::process::Process;

/// Makes a change; ready when this node's picture shows it.
pub(super) async fn apply(process: &Process, change: Admin) -> Response {
    let handle = process.handle.clone();
    let mut random = move || random_id(&handle);
    let topic = TopicId(random());
    let created = process.node.clock.wall(&process.handle);
    let outcome = process.agent.change(|cluster| decide(cluster, &change, topic, created, &mut random)).await;
    match outcome {
        Ok(()) => Response::Done,
        Err(ChangeError::Refused(why)) => Response::Refused(Refusal::Other(why)),
        Err(error) => Response::Unknown(error.to_string()),
    }
}

fn decide(
    cluster: &ClusterState,
    change: &Admin,
    topic: TopicId,
    created: corelog_engine::TimestampMs,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Vec<Op>>, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    match change {
        Admin::CreateTopic { name, partitions, replicas, options } => {
            let new = NewTopic {
                id: topic,
                name: name.clone(),
                partitions: *partitions,
                replicas: *replicas,
                is_internal: false,
                options: options.iter().cloned().collect(),
                created,
            };
            admin::create_topic(cluster, &new, random).map_err(|e| said(&e))
        }
        Admin::DeleteTopic { name } => {
            let named = cluster.topic_named(name).ok_or("there is no such topic")?;
            admin::delete_topic(cluster, named.record.id).map_err(|e| said(&e))
        }
        Admin::AddReplica { partition, node } => {
            admin::add_replica(cluster, *partition, *node, random).map_err(|e| said(&e))
        }
        Admin::RemoveReplica { partition, node } => {
            admin::remove_replica(cluster, *partition, *node).map_err(|e| said(&e))
        }
        Admin::Drain { node, is_drained } => admin::drain(cluster, *node, *is_drained).map_err(|e| said(&e)),
        Admin::ElectUnclean { partition } => {
            admin::elect_unclean(cluster, *partition, None, random).map_err(|e| said(&e))
        }
        Admin::Rebalance => {
            let mut all = Vec::new();
            for id in cluster.partitions.keys().copied().collect::<Vec<TopicPartition>>() {
                // One that has no fit preferred leader stays as it is.
                all.extend(admin::elect_preferred(cluster, id).unwrap_or_default());
            }
            Ok(all)
        }
    }
}
