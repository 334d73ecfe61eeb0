//! What an operator asks of the cluster: drains, replicas, elections. Decided on the newest picture, committed, answered.
//!
//! Owns: what each of these requests becomes. An answer says what is stored; how far the cluster is with it shows in
//! `cluster status`.
//! Crash story: as in `requests.rs`: asked again, a change that is done has nothing left to do.

use corelog_engine::{PartitionId, TopicPartition};
use corelog_net::native::ClusterChange;
use corelog_replication::NodeId;
use corelog_replication::cluster::ClusterState;
use corelog_replication::controller::admin as decide;
use corelog_replication::coordination::{Coordination, OPS_MAX, Op};
use corelog_schemas::messages::{
    AddReplicaRequest, ClusterChangeResponse, DescribeClusterRequest, DescribeClusterResponse, ElectLeader,
    ElectLeadersRequest, ElectLeadersResponse, ElectionKind, ElectionResult, TopicRef,
};
use corelog_schemas::{ErrorCode, Failure};

use super::admin;
use super::describe_cluster::{Answering, describe_cluster};
use super::messages::Answer;
use super::requests::{Changer, random};
use super::thread::Control;
use super::wire::WireError;

impl<C: Coordination> Control<C> {
    pub(super) fn describe_cluster(
        &self,
        request: &DescribeClusterRequest,
        answer: Answer<DescribeClusterResponse>,
    ) {
        let answering = Answering {
            node: self.local.node,
            is_isolated: self.snapshot.is_isolated,
            version: self.snapshot.version.0,
            defaults: self.picture.defaults(),
        };
        answer.send(self.agent.cluster(|cluster| describe_cluster(cluster, request, answering)));
    }

    pub(super) fn change_cluster(&self, change: ClusterChange, answer: Answer<ClusterChangeResponse>) {
        let Some(changer) = self.changer() else {
            let failure =
                Failure::new(ErrorCode::Overloaded, "too many changes are under way; try again soon");
            return answer.send(refused(failure));
        };
        tokio::task::spawn_local(async move { answer.send(changer.change_cluster(change).await) });
    }

    pub(super) fn elect_leaders(&self, request: ElectLeadersRequest, answer: Answer<ElectLeadersResponse>) {
        let Some(changer) = self.changer() else {
            let failure =
                Failure::new(ErrorCode::Overloaded, "too many changes are under way; try again soon");
            let results = request.partitions.iter().map(|wanted| not_elected(wanted, failure.clone()));
            return answer.send(ElectLeadersResponse { results: results.collect() });
        };
        tokio::task::spawn_local(async move {
            let results = match request.kind {
                ElectionKind::Preferred => changer.elect_preferred(&request.partitions).await,
                ElectionKind::Unclean => changer.elect_unclean(&request.partitions).await,
            };
            answer.send(ElectLeadersResponse { results });
        });
    }
}

fn refused(failure: Failure) -> ClusterChangeResponse {
    ClusterChangeResponse { failure: Some(failure), is_unchanged: false, node: None }
}

fn not_elected(wanted: &ElectLeader, failure: Failure) -> ElectionResult {
    let topic = match &wanted.topic {
        TopicRef::Name(name) => name.to_string(),
        TopicRef::Id(id) => format!("{id:032x}"),
    };
    let partition = wanted.partition;
    ElectionResult { failure: Some(failure), topic, partition, leader_node: None, is_unchanged: false }
}

/// The partition that a request names. Whether it exists, the decision finds out.
fn partition(cluster: &ClusterState, topic: &TopicRef, number: u32) -> Result<TopicPartition, Failure> {
    let topic = admin::find(cluster, topic)?.id;
    Ok(TopicPartition { topic, partition: PartitionId(number) })
}

fn nodes_of(cluster: &ClusterState, of: TopicPartition) -> Vec<NodeId> {
    let record = cluster.partitions.get(&of);
    record.map_or_else(Vec::new, |record| record.replicas.iter().map(|replica| replica.node).collect())
}

impl<C: Coordination> Changer<C> {
    async fn change_cluster(&self, change: ClusterChange) -> ClusterChangeResponse {
        match change {
            ClusterChange::AddReplica(request) => self.add_replica(&request).await,
            ClusterChange::DrainNode(request) => {
                tracing::info!(node = request.node, is_drained = request.is_drained, "drain asked for");
                self.simple(|cluster| {
                    decide::drain(cluster, NodeId(request.node), request.is_drained).map_err(|e| e.failure())
                })
                .await
            }
            ClusterChange::ForgetNode(request) => {
                self.simple(|cluster| {
                    decide::forget_node(cluster, NodeId(request.node)).map_err(|e| e.failure())
                })
                .await
            }
            ClusterChange::RemoveReplica(request) => {
                self.simple(|cluster| {
                    let of = partition(cluster, &request.topic, request.partition)?;
                    decide::remove_replica(cluster, of, NodeId(request.node)).map_err(|e| e.failure())
                })
                .await
            }
            ClusterChange::SetReplicas(request) => {
                self.simple(|cluster| {
                    let topic = admin::find(cluster, &request.topic)?.id;
                    decide::set_replicas(cluster, topic, request.replicas, &mut random)
                        .map_err(|e| e.failure())
                })
                .await
            }
        }
    }

    /// A change that is done when there is nothing left to commit. One that was refused only because an earlier attempt
    /// of its own had done it is done.
    async fn simple(
        &self,
        mut decide: impl FnMut(&ClusterState) -> Result<Vec<Vec<Op>>, Failure>,
    ) -> ClusterChangeResponse {
        let mut has_commits = false;
        let made = self.change(false, |cluster| match decide(cluster) {
            Ok(commits) => {
                has_commits |= !commits.is_empty();
                Ok(commits)
            }
            Err(_) if has_commits => Ok(Vec::new()),
            Err(failure) => Err(failure),
        });
        match made.await {
            Ok(()) => ClusterChangeResponse { failure: None, is_unchanged: !has_commits, node: None },
            Err(failure) => refused(failure),
        }
    }

    async fn add_replica(&self, request: &AddReplicaRequest) -> ClusterChangeResponse {
        let mut before: Option<(TopicPartition, Vec<NodeId>)> = None;
        let made = self.change(false, |cluster| {
            let of = partition(cluster, &request.topic, request.partition)?;
            let now = nodes_of(cluster, of);
            // Once more after a lost answer: one more than before is what was asked for.
            if before.as_ref().is_some_and(|(_, before)| now.len() > before.len()) {
                return Ok(Vec::new());
            }
            before = Some((of, now));
            decide::add_replica(cluster, of, request.node.map(NodeId), &mut random).map_err(|e| e.failure())
        });
        match (made.await, before) {
            (Ok(()), Some((of, before))) => {
                let now = self.agent.cluster(|cluster| nodes_of(cluster, of));
                let node = now.into_iter().find(|node| !before.contains(node)).map(|node| node.0);
                ClusterChangeResponse { failure: None, is_unchanged: false, node }
            }
            (Err(failure), _) => refused(failure),
            (Ok(()), None) => unreachable!("a decision was made"),
        }
    }

    /// The preferred leaders of these partitions, or of all, lead: as far as they can.
    async fn elect_preferred(&self, wanted: &[ElectLeader]) -> Vec<ElectionResult> {
        let mut outcome: Vec<(String, TopicPartition, Result<bool, Failure>)> = Vec::new();
        let mut unknown: Vec<ElectionResult> = Vec::new();
        let mut chosen: Option<Vec<TopicPartition>> = None;
        let made = self.change(false, |cluster| {
            let chosen = chosen.get_or_insert_with(|| {
                if wanted.is_empty() {
                    return not_preferred(cluster);
                }
                let found = wanted.iter().filter_map(|one| {
                    let found = partition(cluster, &one.topic, one.partition);
                    found.map_err(|failure| unknown.push(not_elected(one, failure))).ok()
                });
                found.collect()
            });
            let (mut commits, mut ops) = (Vec::new(), Vec::new());
            let was_changed: Vec<TopicPartition> =
                outcome.iter().filter(|(_, _, made)| *made == Ok(true)).map(|(_, of, _)| *of).collect();
            outcome.clear();
            for of in chosen {
                let name = cluster.topics.get(&of.topic).map_or_else(String::new, |topic| topic.name.clone());
                let decided = decide::elect_preferred(cluster, *of).map_err(|error| error.failure());
                let made = decided.map(|decided| {
                    let changes = !decided.is_empty() || was_changed.contains(of);
                    ops.extend(decided.into_iter().flatten());
                    changes
                });
                outcome.push((name, *of, made));
                if ops.len() >= OPS_MAX / 2 {
                    commits.push(std::mem::take(&mut ops));
                }
            }
            commits.extend(Some(ops).filter(|ops| !ops.is_empty()));
            Ok(commits)
        });
        let failure = made.await.err();
        let results = outcome.into_iter().map(|(topic, of, made)| ElectionResult {
            failure: failure.clone().or_else(|| made.clone().err()),
            topic,
            partition: of.partition.0,
            leader_node: self.leader(of),
            is_unchanged: made == Ok(false),
        });
        results.chain(unknown).collect()
    }

    /// Each by its own: records may be given up.
    async fn elect_unclean(&self, wanted: &[ElectLeader]) -> Vec<ElectionResult> {
        let mut results = Vec::with_capacity(wanted.len());
        for one in wanted {
            let mut found = None;
            let made = self.change(false, |cluster| {
                let of = partition(cluster, &one.topic, one.partition)?;
                let epoch = cluster.partitions.get(&of).map(|record| record.leader_epoch);
                // Once more after a lost answer: an unclean election in a later epoch is this one.
                if let Some((_, Some(before))) = found
                    && cluster.partitions.get(&of).is_some_and(|record| record.unclean_epoch > Some(before))
                {
                    return Ok(Vec::new());
                }
                found = Some((of, epoch));
                let node = one.node.map(NodeId);
                decide::elect_unclean(cluster, of, node, &mut random).map_err(|error| error.failure())
            });
            let made = made.await;
            match (made, found) {
                (Ok(()), Some((of, _))) => {
                    let leader_node = self.leader(of);
                    tracing::warn!(topic = %of.topic, partition = %of.partition, ?leader_node, "unclean election on an operator's order");
                    let done = not_elected(one, Failure::from(ErrorCode::Unknown));
                    results.push(ElectionResult { failure: None, leader_node, ..done });
                }
                (Err(failure), _) => results.push(not_elected(one, failure)),
                (Ok(()), None) => unreachable!("a decision was made"),
            }
        }
        results
    }

    fn leader(&self, of: TopicPartition) -> Option<u32> {
        self.agent.cluster(|cluster| cluster.leader_location(of)).map(|(node, _)| node.0)
    }
}

/// Partitions that another replica than the preferred one leads.
fn not_preferred(cluster: &ClusterState) -> Vec<TopicPartition> {
    let led = cluster.partitions.iter().filter(|(of, record)| {
        let preferred = record.replicas.first().map(|replica| replica.node);
        cluster.leader_location(**of).is_some_and(|(node, _)| Some(node) != preferred)
    });
    led.map(|(of, _)| *of).collect()
}
