//! What the nodes say about the cluster: who leads, who is in sync, who is the controller.
//!
//! A node that is cut off says what it knew; of each partition the newest epoch that anybody knows counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corelog_schemas::messages::{MetadataRequest, MetadataResponse, MetadataTopics, PartitionMetadata};

use super::cluster::{NODES, Shared, address};
use super::direct::Direct;

const PATIENCE: Duration = Duration::from_millis(800);
const PAUSE: Duration = Duration::from_millis(100);

/// One picture.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) controller: Option<u32>,
    /// By topic and number.
    pub(crate) partitions: BTreeMap<(String, u32), PartitionMetadata>,
}

impl View {
    fn of(response: MetadataResponse) -> Self {
        let partitions = response.topics.into_iter().flat_map(|topic| {
            let name = topic.name;
            // Nodes differ in what they know of the log start.
            topic.partitions.into_iter().map(move |p| {
                ((name.clone(), p.partition), PartitionMetadata { log_start_offset: None, ..p })
            })
        });
        Self { controller: response.controller_node, partitions: partitions.collect() }
    }

    /// Takes over what another picture knows better.
    fn merge(&mut self, other: Self) {
        self.controller = other.controller.or(self.controller);
        for (id, partition) in other.partitions {
            let is_older =
                self.partitions.get(&id).is_some_and(|known| known.leader_epoch > partition.leader_epoch);
            if !is_older {
                self.partitions.insert(id, partition);
            }
        }
    }

    /// Who leads a partition now, as far as is known.
    pub(crate) fn leader(&self, topic: &str, partition: u32) -> Option<u32> {
        let found = self.partitions.get(&(topic.to_owned(), partition))?;
        found.error.is_none().then_some(found.leader_node)
    }

    /// What is not well, in words; `None`: every partition has a leader and all replicas in sync.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.partitions.is_empty() {
            return Some("no topics".to_owned());
        }
        let bad =
            self.partitions.iter().find(|(_, p)| p.error.is_some() || p.in_sync.len() < p.replicas.len());
        bad.map(|((topic, n), p)| {
            format!(
                "{topic}/{n}: leader {} in epoch {}, {:?}, in sync {:?} of {:?}",
                p.leader_node, p.leader_epoch, p.error, p.in_sync, p.replicas
            )
        })
    }
}

/// Asks one node.
pub(crate) async fn ask(node: u32) -> std::io::Result<View> {
    let mut direct = Direct::connect(address(node, 0)).await?;
    let request = MetadataRequest { topics: MetadataTopics::All };
    let (response, _) = direct.ask(&request, &[], PATIENCE).await?.map_err(std::io::Error::other)?;
    Ok(View::of(response))
}

/// Keeps the shared view new, for ever.
pub(crate) async fn watch(shared: Arc<Shared>) {
    loop {
        let mut newest = View::default();
        let views = futures_util::future::join_all((1..=NODES).map(ask)).await;
        for view in views.into_iter().flatten() {
            newest.merge(view);
        }
        if !newest.partitions.is_empty() {
            *shared.view.lock().expect("nobody panics") = newest;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until all nodes say that all is well, and the same.
///
/// Errors: what was wrong last, in words.
pub(crate) async fn await_well(patience: Duration) -> Result<View, String> {
    let began = tokio::time::Instant::now();
    loop {
        let views = futures_util::future::join_all((1..=NODES).map(ask)).await;
        let mut trouble = None;
        let mut seen: Option<View> = None;
        for (node, view) in (1..).zip(views) {
            match view {
                Err(error) => trouble = Some(format!("node {node} does not answer: {error}")),
                Ok(view) => {
                    trouble = trouble.or_else(|| Some(format!("node {node} says: {}", view.trouble()?)));
                    if seen.as_ref().is_some_and(|seen| seen.partitions != view.partitions) {
                        trouble = trouble.or_else(|| Some(format!("node {node} has another picture")));
                    }
                    seen.get_or_insert(view);
                }
            }
        }
        match (trouble, seen) {
            (None, Some(view)) => return Ok(view),
            (trouble, _) if began.elapsed() > patience => {
                return Err(trouble.unwrap_or_else(|| "nobody answers".to_owned()));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}
