//! A client of the simulated cluster: connections, time-outs, and what it believes about leaders.
//!
//! Owns: one connection to each shard that it has talked to; the newest leadership it has heard of for each partition.
//! Invariant: answers come in the order of the requests of a connection; one that is late breaks the connection, and
//! everything on it is of unknown outcome.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::notify::Notify;
use corelog_engine::{LeaderEpoch, TopicPartition};
use corelog_replication::NodeId;
use futures_util::future::{Either, select};

use crate::cluster::{CLIENT_PORT, Packet, Request, Response, TopicPlace, World};
use crate::network::{Address, Connection, Machine};

/// How long an answer is waited for.
const TIMEOUT_MS: u64 = 4_000;

/// A client on a machine of its own.
pub struct Client {
    /// The cluster around it.
    pub world: Rc<World>,
    machine: Machine,
    nodes: Vec<NodeId>,
    connections: RefCell<BTreeMap<(NodeId, u16), Rc<ClientConnection>>>,
    topics: RefCell<Vec<TopicPlace>>,
    leaders: RefCell<BTreeMap<TopicPartition, Leader>>,
}

/// Who leads a partition, as a client knows it.
#[derive(Clone, Copy, Debug)]
pub struct Leader {
    /// Node and shard; `None`: nobody.
    pub at: Option<(NodeId, u16)>,
    /// In which epoch.
    pub epoch: LeaderEpoch,
    /// The epoch that began with an unclean election.
    pub unclean_epoch: Option<LeaderEpoch>,
}

/// One connection, and who waits for answers on it.
pub struct ClientConnection {
    connection: Connection<Packet>,
    waiting: RefCell<VecDeque<Rc<Reply>>>,
    is_broken: Cell<bool>,
}

#[derive(Default)]
struct Reply {
    response: RefCell<Option<Option<Response>>>,
    changed: Notify,
}

impl ClientConnection {
    /// Its number, for the order of what is sent on it.
    pub fn number(&self) -> u64 {
        self.connection.number()
    }

    fn break_off(&self) {
        self.is_broken.set(true);
        self.connection.close();
        for reply in self.waiting.take() {
            reply.fill(None);
        }
    }
}

impl Reply {
    fn fill(&self, response: Option<Response>) {
        *self.response.borrow_mut() = Some(response);
        self.changed.notify_all();
    }

    async fn wait(&self) -> Option<Response> {
        loop {
            let changed = self.changed.notified();
            if let Some(response) = self.response.borrow_mut().take() {
                return response;
            }
            changed.await;
        }
    }
}

impl Client {
    /// A client that has talked to nobody.
    pub fn new(world: &Rc<World>, number: u32, nodes: Vec<NodeId>) -> Rc<Self> {
        Rc::new(Self {
            world: world.clone(),
            machine: Machine(1000 + number),
            nodes,
            connections: RefCell::default(),
            topics: RefCell::default(),
            leaders: RefCell::default(),
        })
    }

    /// A pause of `[min, max)` ms.
    pub async fn pause(&self, min: u64, max: u64) {
        let ms = self.world.handle.random(min..max);
        self.world.handle.sleep(Duration::from_millis(ms)).await;
    }

    /// One of its nodes.
    pub fn any_node(&self) -> NodeId {
        self.nodes[self.world.handle.random(0..self.nodes.len() as u64) as usize]
    }

    /// The topics that it knows.
    pub fn topics(&self) -> Vec<TopicPlace> {
        self.topics.borrow().clone()
    }

    /// The newest leadership that it knows.
    pub fn leader(&self, partition: TopicPartition) -> Option<Leader> {
        self.leaders.borrow().get(&partition).copied()
    }

    /// Asks a node for the topics and leaders. What is older than what is known is not believed.
    pub async fn refresh(self: &Rc<Self>) -> bool {
        let node = self.any_node();
        let Some(Response::Metadata(topics)) = self.call(node, 0, Request::Metadata).await else {
            return false;
        };
        let mut leaders = self.leaders.borrow_mut();
        for place in topics.iter().flat_map(|topic| &topic.partitions) {
            let told =
                Leader { at: place.leader, epoch: place.leader_epoch, unclean_epoch: place.unclean_epoch };
            let known = leaders.entry(place.partition).or_insert(told);
            if told.epoch >= known.epoch {
                *known = told;
            }
        }
        *self.topics.borrow_mut() = topics;
        true
    }

    /// Asks, and waits for the answer. `None`: it did not come.
    pub async fn call(self: &Rc<Self>, node: NodeId, shard: u16, request: Request) -> Option<Response> {
        let connection = self.connection(node, shard).await?;
        self.send(&connection, request).await?.await
    }

    /// The connection to a shard, made if there is none.
    pub async fn connection(self: &Rc<Self>, node: NodeId, shard: u16) -> Option<Rc<ClientConnection>> {
        if let Some(known) = self.connections.borrow().get(&(node, shard))
            && !known.is_broken.get()
        {
            return Some(known.clone());
        }
        let address = Address { machine: Machine(node.0), port: CLIENT_PORT + shard };
        let connection = self.world.network.connect(self.machine, address).await.ok()?;
        let connection = Rc::new(ClientConnection {
            connection,
            waiting: RefCell::default(),
            is_broken: Cell::new(false),
        });
        self.connections.borrow_mut().insert((node, shard), connection.clone());
        let reading = connection.clone();
        self.world.handle.spawn(async move {
            while let Ok(packet) = reading.connection.recv().await {
                let waiting = reading.waiting.borrow_mut().pop_front();
                match (packet, waiting) {
                    (Packet::Response(response), Some(reply)) => reply.fill(Some(response)),
                    _ => break,
                }
            }
            reading.break_off();
        });
        Some(connection)
    }

    /// Sends on a connection; the future returned is ready with the answer, or with nothing when it is late or lost.
    /// `None`: it was not sent.
    pub async fn send(
        self: &Rc<Self>,
        connection: &Rc<ClientConnection>,
        request: Request,
    ) -> Option<impl Future<Output = Option<Response>> + use<>> {
        let reply = Rc::new(Reply::default());
        connection.waiting.borrow_mut().push_back(reply.clone());
        let patience = self.world.handle.sleep(Duration::from_millis(TIMEOUT_MS));
        let sent =
            select(Box::pin(connection.connection.send(Packet::Request(request))), Box::pin(patience)).await;
        if !matches!(sent, Either::Left((Ok(()), _))) {
            connection.break_off();
            // A part of it may have left.
            return None;
        }
        let (connection, handle) = (connection.clone(), self.world.handle.clone());
        Some(async move {
            let patience = handle.sleep(Duration::from_millis(TIMEOUT_MS));
            match select(Box::pin(reply.wait()), Box::pin(patience)).await {
                Either::Left((response, _)) => response,
                Either::Right(_) => {
                    connection.break_off();
                    None
                }
            }
        })
    }
}
