//! The cluster: its picture, and what an operator asks of it.

use flatbuffers::WIPOffset;

use super::{
    Builder, DecodeError, Failure, Message, TopicRef, build_topic_ref, failure_of, id_field, id_of, owned,
    read_tables, read_topic_ref, root, tables, text, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// Asks any node about the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribeClusterRequest {
    /// Most partitions to name of those that are not well.
    pub partitions_max: u32,
}

/// Whether a node runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Registered, and nobody says otherwise.
    Live,
    /// About to stop.
    Stopping,
    /// Registered still, but other nodes are refused by it.
    Suspected,
    /// Known, and not running.
    Gone,
}

impl NodeState {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stopping => "stopping",
            Self::Suspected => "suspected",
            Self::Gone => "gone",
        }
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its number.
    pub node: u32,
    /// Whether it runs.
    pub state: NodeState,
    /// An operator has asked that it leads nothing.
    pub is_drained: bool,
    /// Server and version; empty if it does not run.
    pub software: String,
    /// When it was started.
    pub started_ms: i64,
    /// Where its first shard listens for clients; empty if it does not run.
    pub host: String,
    /// TCP port of that.
    pub port: u16,
    /// How many shards it has.
    pub shards: u16,
    /// How many usable data directories.
    pub data_dirs: u16,
    /// Replicas placed on it.
    pub replicas: u32,
    /// Those of them that are in sync.
    pub replicas_in_sync: u32,
    /// Partitions that it leads.
    pub leaders: u32,
}

/// What a node says about one of its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaTrouble {
    /// The node.
    pub node: u32,
    /// In one word: lost, failed, unverified.
    pub kind: String,
    /// For a person.
    pub reason: String,
}

/// A partition that is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionHealth {
    /// Its topic.
    pub topic_id: u128,
    /// The topic's name.
    pub topic: String,
    /// Its number in the topic.
    pub partition: u32,
    /// Who leads it; `None`: nobody.
    pub leader_node: Option<u32>,
    /// Epoch of the newest leadership.
    pub leader_epoch: u32,
    /// Nodes that have a replica, the preferred leader first.
    pub replicas: Vec<u32>,
    /// Those in sync.
    pub in_sync: Vec<u32>,
    /// How many `acks = all` asks for.
    pub min_insync_replicas: u16,
    /// What is wrong with replicas, as their nodes say.
    pub troubles: Vec<ReplicaTrouble>,
}

/// The picture of the cluster that one node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeClusterResponse {
    /// Its identity.
    pub cluster_id: String,
    /// Version of what the node that answers knows.
    pub version: u64,
    /// Who answers.
    pub answering_node: u32,
    /// It has no session with the coordination service: what it says may be old.
    pub is_isolated: bool,
    /// Who decides, if anybody does now.
    pub controller_node: Option<u32>,
    /// Number of the newest controller's term.
    pub controller_epoch: u64,
    /// Every node that is known, by number.
    pub nodes: Vec<ClusterNode>,
    /// How many topics there are.
    pub topics: u32,
    /// How many partitions.
    pub partitions: u32,
    /// Those without a leader.
    pub offline: u32,
    /// Those with fewer replicas in sync than they have.
    pub under_replicated: u32,
    /// Those with fewer replicas in sync than `acks = all` asks for.
    pub below_min_insync: u32,
    /// Those led by another replica than the preferred one.
    pub not_preferred: u32,
    /// Partitions that are not well, offline ones first.
    pub unhealthy: Vec<PartitionHealth>,
    /// Topics that one lost disk takes with it, at most 1000.
    pub topics_with_one_replica: Vec<String>,
    /// What is stored and cannot be understood.
    pub problems: Vec<String>,
}

/// Takes leadership off a node, or lets it lead again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainNodeRequest {
    /// Which node.
    pub node: u32,
    /// False: it may lead again.
    pub is_drained: bool,
}

/// Forgets a node that does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgetNodeRequest {
    /// Which node.
    pub node: u32,
}

/// Gives a partition another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddReplicaRequest {
    /// Its topic.
    pub topic: TopicRef,
    /// Its number in the topic.
    pub partition: u32,
    /// Where; `None`: the node with the fewest replicas.
    pub node: Option<u32>,
}

/// Takes a replica of a partition away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoveReplicaRequest {
    /// Its topic.
    pub topic: TopicRef,
    /// Its number in the topic.
    pub partition: u32,
    /// Whose.
    pub node: u32,
}

/// Changes the number of replicas of all partitions of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetReplicasRequest {
    /// Which topic.
    pub topic: TopicRef,
    /// How many there are to be.
    pub replicas: u16,
}

/// What was asked is stored and will be done, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterChangeResponse {
    /// Why nothing has changed.
    pub failure: Option<Failure>,
    /// It was so already.
    pub is_unchanged: bool,
    /// Where a replica was placed.
    pub node: Option<u32>,
}

/// Which leader is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionKind {
    /// The first of the replicas.
    Preferred,
    /// One that may lack acked records: they are given up.
    Unclean,
}

/// A partition that is to get another leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectLeader {
    /// Its topic.
    pub topic: TopicRef,
    /// Its number in the topic.
    pub partition: u32,
    /// Unclean: whose replica; `None`: the best there is.
    pub node: Option<u32>,
}

/// Lets other replicas lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectLeadersRequest {
    /// Which leader is wanted.
    pub kind: ElectionKind,
    /// Of which partitions; none: of all that are not led by their preferred replica.
    pub partitions: Vec<ElectLeader>,
}

/// What became of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionResult {
    /// Why its leader has not changed.
    pub failure: Option<Failure>,
    /// Its topic's name; empty if unknown.
    pub topic: String,
    /// Its number in the topic.
    pub partition: u32,
    /// Who leads it now.
    pub leader_node: Option<u32>,
    /// It led already.
    pub is_unchanged: bool,
}

/// One result for each partition of the request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectLeadersResponse {
    /// Results.
    pub results: Vec<ElectionResult>,
}

macro_rules! requests {
    ($($request:ident, $api:ident => $response:ident;)*) => {$(
        impl Request for $request {
            const API: Api = Api::$api;
            type Response = $response;
        }
    )*};
}
requests! {
    DescribeClusterRequest, DescribeCluster => DescribeClusterResponse;
    DrainNodeRequest, DrainNode => ClusterChangeResponse;
    ForgetNodeRequest, ForgetNode => ClusterChangeResponse;
    AddReplicaRequest, AddReplica => ClusterChangeResponse;
    RemoveReplicaRequest, RemoveReplica => ClusterChangeResponse;
    SetReplicasRequest, SetReplicas => ClusterChangeResponse;
    ElectLeadersRequest, ElectLeaders => ElectLeadersResponse;
}

/// The topic that a request must name.
fn topic_in(t: Option<wire::TopicRef<'_>>) -> Result<TopicRef, DecodeError> {
    read_topic_ref(t.ok_or(DecodeError::Missing("which topic it means"))?)
}

fn error_field(failure: Option<&Failure>) -> wire::ErrorCode {
    failure.map_or(wire::ErrorCode::None, |f| wire::ErrorCode(f.code.number()))
}

impl Message for DescribeClusterRequest {
    fn build(&self, b: &mut Builder) {
        let args = wire::DescribeClusterRequestArgs { partitions_max: self.partitions_max };
        let root = wire::DescribeClusterRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DescribeClusterRequest<'_>>(head)?;
        Ok(Self { partitions_max: t.partitions_max() })
    }
}

fn build_node(b: &mut Builder, n: &ClusterNode) -> WIPOffset<wire::ClusterNode<'static>> {
    let (software, host) = (text(b, &n.software), text(b, &n.host));
    let state = match n.state {
        NodeState::Live => wire::NodeState::Live,
        NodeState::Stopping => wire::NodeState::Stopping,
        NodeState::Suspected => wire::NodeState::Suspected,
        NodeState::Gone => wire::NodeState::Gone,
    };
    let args = wire::ClusterNodeArgs {
        node: n.node,
        state,
        is_drained: n.is_drained,
        software,
        started_ms: n.started_ms,
        host,
        port: n.port,
        shards: n.shards,
        data_dirs: n.data_dirs,
        replicas: n.replicas,
        replicas_in_sync: n.replicas_in_sync,
        leaders: n.leaders,
    };
    wire::ClusterNode::create(b, &args)
}

fn read_node(n: wire::ClusterNode<'_>) -> Result<ClusterNode, DecodeError> {
    Ok(ClusterNode {
        node: n.node(),
        state: match n.state() {
            wire::NodeState::Live => NodeState::Live,
            wire::NodeState::Stopping => NodeState::Stopping,
            wire::NodeState::Suspected => NodeState::Suspected,
            // Whatever a newer server says: not one to count on.
            _ => NodeState::Gone,
        },
        is_drained: n.is_drained(),
        software: owned(n.software()),
        started_ms: n.started_ms(),
        host: owned(n.host()),
        port: n.port(),
        shards: n.shards(),
        data_dirs: n.data_dirs(),
        replicas: n.replicas(),
        replicas_in_sync: n.replicas_in_sync(),
        leaders: n.leaders(),
    })
}

fn build_health(b: &mut Builder, p: &PartitionHealth) -> WIPOffset<wire::PartitionHealth<'static>> {
    let troubles = tables(b, &p.troubles, |b, t| {
        let (kind, reason) = (text(b, &t.kind), text(b, &t.reason));
        wire::ReplicaTrouble::create(b, &wire::ReplicaTroubleArgs { node: t.node, kind, reason })
    });
    let topic = text(b, &p.topic);
    let (replicas, in_sync) = (b.create_vector(&p.replicas), b.create_vector(&p.in_sync));
    let topic_id = id_field(p.topic_id);
    let args = wire::PartitionHealthArgs {
        topic_id: Some(&topic_id),
        topic,
        partition: p.partition,
        leader_node: p.leader_node,
        leader_epoch: p.leader_epoch,
        replicas: Some(replicas),
        in_sync: Some(in_sync),
        min_insync_replicas: p.min_insync_replicas,
        troubles: Some(troubles),
    };
    wire::PartitionHealth::create(b, &args)
}

fn read_health(p: wire::PartitionHealth<'_>) -> Result<PartitionHealth, DecodeError> {
    let troubles = read_tables(p.troubles(), |t| {
        Ok(ReplicaTrouble { node: t.node(), kind: owned(t.kind()), reason: owned(t.reason()) })
    })?;
    Ok(PartitionHealth {
        topic_id: p.topic_id().map(id_of).ok_or(DecodeError::Missing("which topic it means"))?,
        topic: owned(p.topic()),
        partition: p.partition(),
        leader_node: p.leader_node(),
        leader_epoch: p.leader_epoch(),
        replicas: p.replicas().map(|nodes| nodes.iter().collect()).unwrap_or_default(),
        in_sync: p.in_sync().map(|nodes| nodes.iter().collect()).unwrap_or_default(),
        min_insync_replicas: p.min_insync_replicas(),
        troubles,
    })
}

fn build_strings(
    b: &mut Builder,
    strings: &[String],
) -> WIPOffset<flatbuffers::Vector<'static, flatbuffers::ForwardsUOffset<&'static str>>> {
    let offsets: Vec<_> = strings.iter().map(|string| b.create_string(string)).collect();
    b.create_vector(&offsets)
}

fn read_strings(strings: Option<flatbuffers::Vector<'_, flatbuffers::ForwardsUOffset<&str>>>) -> Vec<String> {
    strings.map(|strings| strings.iter().map(str::to_owned).collect()).unwrap_or_default()
}

impl Message for DescribeClusterResponse {
    fn build(&self, b: &mut Builder) {
        let cluster_id = text(b, &self.cluster_id);
        let nodes = tables(b, &self.nodes, build_node);
        let unhealthy = tables(b, &self.unhealthy, build_health);
        let topics_with_one_replica = build_strings(b, &self.topics_with_one_replica);
        let problems = build_strings(b, &self.problems);
        let args = wire::DescribeClusterResponseArgs {
            cluster_id,
            version: self.version,
            answering_node: self.answering_node,
            is_isolated: self.is_isolated,
            controller_node: self.controller_node,
            controller_epoch: self.controller_epoch,
            nodes: Some(nodes),
            topics: self.topics,
            partitions: self.partitions,
            offline: self.offline,
            under_replicated: self.under_replicated,
            below_min_insync: self.below_min_insync,
            not_preferred: self.not_preferred,
            unhealthy: Some(unhealthy),
            topics_with_one_replica: Some(topics_with_one_replica),
            problems: Some(problems),
        };
        let root = wire::DescribeClusterResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DescribeClusterResponse<'_>>(head)?;
        Ok(Self {
            cluster_id: owned(t.cluster_id()),
            version: t.version(),
            answering_node: t.answering_node(),
            is_isolated: t.is_isolated(),
            controller_node: t.controller_node(),
            controller_epoch: t.controller_epoch(),
            nodes: read_tables(t.nodes(), read_node)?,
            topics: t.topics(),
            partitions: t.partitions(),
            offline: t.offline(),
            under_replicated: t.under_replicated(),
            below_min_insync: t.below_min_insync(),
            not_preferred: t.not_preferred(),
            unhealthy: read_tables(t.unhealthy(), read_health)?,
            topics_with_one_replica: read_strings(t.topics_with_one_replica()),
            problems: read_strings(t.problems()),
        })
    }
}

impl Message for DrainNodeRequest {
    fn build(&self, b: &mut Builder) {
        let args = wire::DrainNodeRequestArgs { node: self.node, is_drained: self.is_drained };
        let root = wire::DrainNodeRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DrainNodeRequest<'_>>(head)?;
        Ok(Self { node: t.node(), is_drained: t.is_drained() })
    }
}

impl Message for ForgetNodeRequest {
    fn build(&self, b: &mut Builder) {
        let root = wire::ForgetNodeRequest::create(b, &wire::ForgetNodeRequestArgs { node: self.node });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { node: root::<wire::ForgetNodeRequest<'_>>(head)?.node() })
    }
}

impl Message for AddReplicaRequest {
    fn build(&self, b: &mut Builder) {
        let topic = build_topic_ref(b, &self.topic);
        let args =
            wire::AddReplicaRequestArgs { topic: Some(topic), partition: self.partition, node: self.node };
        let root = wire::AddReplicaRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::AddReplicaRequest<'_>>(head)?;
        Ok(Self { topic: topic_in(t.topic())?, partition: t.partition(), node: t.node() })
    }
}

impl Message for RemoveReplicaRequest {
    fn build(&self, b: &mut Builder) {
        let topic = build_topic_ref(b, &self.topic);
        let args =
            wire::RemoveReplicaRequestArgs { topic: Some(topic), partition: self.partition, node: self.node };
        let root = wire::RemoveReplicaRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::RemoveReplicaRequest<'_>>(head)?;
        Ok(Self { topic: topic_in(t.topic())?, partition: t.partition(), node: t.node() })
    }
}

impl Message for SetReplicasRequest {
    fn build(&self, b: &mut Builder) {
        let topic = build_topic_ref(b, &self.topic);
        let args = wire::SetReplicasRequestArgs { topic: Some(topic), replicas: self.replicas };
        let root = wire::SetReplicasRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::SetReplicasRequest<'_>>(head)?;
        Ok(Self { topic: topic_in(t.topic())?, replicas: t.replicas() })
    }
}

impl Message for ClusterChangeResponse {
    fn build(&self, b: &mut Builder) {
        let message = self.failure.as_ref().and_then(|f| text(b, &f.message));
        let args = wire::ClusterChangeResponseArgs {
            error: error_field(self.failure.as_ref()),
            message,
            is_unchanged: self.is_unchanged,
            node: self.node,
        };
        let root = wire::ClusterChangeResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ClusterChangeResponse<'_>>(head)?;
        let failure = failure_of(t.error(), t.message());
        Ok(Self { failure, is_unchanged: t.is_unchanged(), node: t.node() })
    }
}

impl Message for ElectLeadersRequest {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, p| {
            let topic = build_topic_ref(b, &p.topic);
            let args = wire::ElectLeaderArgs { topic: Some(topic), partition: p.partition, node: p.node };
            wire::ElectLeader::create(b, &args)
        });
        let kind = match self.kind {
            ElectionKind::Preferred => wire::ElectionKind::Preferred,
            ElectionKind::Unclean => wire::ElectionKind::Unclean,
        };
        let args = wire::ElectLeadersRequestArgs { kind, partitions: Some(partitions) };
        let root = wire::ElectLeadersRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ElectLeadersRequest<'_>>(head)?;
        let kind = match t.kind() {
            wire::ElectionKind::Preferred => ElectionKind::Preferred,
            wire::ElectionKind::Unclean => ElectionKind::Unclean,
            _ => return Err(DecodeError::Missing("which leader is wanted")),
        };
        let partitions = read_tables(t.partitions(), |p| {
            Ok(ElectLeader { topic: topic_in(p.topic())?, partition: p.partition(), node: p.node() })
        })?;
        Ok(Self { kind, partitions })
    }
}

impl Message for ElectLeadersResponse {
    fn build(&self, b: &mut Builder) {
        let results = tables(b, &self.results, |b, r| {
            let message = r.failure.as_ref().and_then(|f| text(b, &f.message));
            let topic = text(b, &r.topic);
            let args = wire::ElectionResultArgs {
                error: error_field(r.failure.as_ref()),
                message,
                topic,
                partition: r.partition,
                leader_node: r.leader_node,
                is_unchanged: r.is_unchanged,
            };
            wire::ElectionResult::create(b, &args)
        });
        let root =
            wire::ElectLeadersResponse::create(b, &wire::ElectLeadersResponseArgs { results: Some(results) });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ElectLeadersResponse<'_>>(head)?;
        let results = read_tables(t.results(), |r| {
            Ok(ElectionResult {
                failure: failure_of(r.error(), r.message()),
                topic: owned(r.topic()),
                partition: r.partition(),
                leader_node: r.leader_node(),
                is_unchanged: r.is_unchanged(),
            })
        })?;
        Ok(Self { results })
    }
}
