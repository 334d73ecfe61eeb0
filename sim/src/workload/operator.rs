//! An operator: topics, replicas, drains, and what is asked when something is beyond repair by itself.

use std::rc::Rc;

use corelog_engine::{Offset, TopicPartition};
use corelog_replication::NodeId;

use super::Workload;
use super::client::Client;
use crate::cluster::{Admin, Refusal, Request, Response};

/// A topic of a run.
#[derive(Clone, Debug)]
pub struct TopicPlan {
    /// Its name; producers know by it which acks to ask for.
    pub name: &'static str,
    /// How many partitions.
    pub partitions: u32,
    /// How many replicas.
    pub replicas: u16,
    /// Its options.
    pub options: Vec<(String, String)>,
}

/// Asks nodes for changes, and tries again.
pub struct Operator {
    client: Rc<Client>,
    workload: Rc<Workload>,
}

impl Operator {
    /// An operator with a client of its own.
    pub fn new(workload: &Rc<Workload>) -> Self {
        Self { client: workload.client(500), workload: workload.clone() }
    }

    /// Its client.
    pub fn client(&self) -> &Rc<Client> {
        &self.client
    }

    /// The load beside it.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Asks for a change until a node says that it is done or makes no sense, at most `attempts` times.
    pub async fn ask(&self, change: Admin, attempts: u32) -> bool {
        for _ in 0..attempts {
            let node = self.client.any_node();
            match self.client.call(node, 0, Request::Admin(change.clone())).await {
                Some(Response::Done) => return true,
                Some(Response::Refused(Refusal::Other(why))) if why.contains("exists") => return true,
                Some(Response::Refused(why)) => {
                    self.client.world.handle.note(format_args!("operator: {change:?}: {why:?}"));
                    self.client.pause(100, 400).await;
                }
                _ => self.client.pause(100, 400).await,
            }
        }
        false
    }

    /// Makes a topic; one that is there is good enough.
    pub async fn create(&self, plan: &TopicPlan, attempts: u32) -> bool {
        let change = Admin::CreateTopic {
            name: plan.name.to_owned(),
            partitions: plan.partitions,
            replicas: plan.replicas,
            options: plan.options.clone(),
        };
        self.ask(change, attempts).await
    }

    /// Deletes records of a partition below an offset that is somewhere below its latest one.
    pub async fn delete_records(&self, partition: TopicPartition) -> bool {
        self.client.refresh().await;
        let Some((node, shard)) = self.client.leader(partition).and_then(|leader| leader.at) else {
            return false;
        };
        let Some(Response::Latest { offset, .. }) =
            self.client.call(node, shard, Request::Latest { partition }).await
        else {
            return false;
        };
        if offset.0 == 0 {
            return false;
        }
        let before = Offset(self.client.world.handle.random(0..offset.0 + 1));
        self.workload.may_delete(partition, before.0);
        let request = Request::DeleteRecords { partition, before };
        matches!(self.client.call(node, shard, request).await, Some(Response::Done))
    }

    /// Puts a new replica in the place of one on the same node, wherever the placement wants it.
    pub async fn replace(&self, partition: TopicPartition, node: NodeId) {
        self.ask(Admin::RemoveReplica { partition, node }, 3).await;
        self.client.pause(500, 1_000).await;
        self.ask(Admin::AddReplica { partition, node: None }, 5).await;
    }
}
