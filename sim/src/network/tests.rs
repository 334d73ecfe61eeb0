//! What a simulated connection may do, and what it may not.

use super::*;
use crate::executor::Executor;

impl Parcel for u64 {
    fn bytes(&self) -> usize {
        100
    }
}

const A: Machine = Machine(1);
const B: Machine = Machine(2);
const PORT: Address = Address { machine: B, port: 9 };

struct World {
    executor: Executor,
    network: SimNetwork<u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let executor = Executor::new(seed);
        let network = SimNetwork::new(executor.handle(), SimNetworkOptions::default());
        Self { executor, network }
    }

    async fn pair(&self) -> (Connection<u64>, Connection<u64>, Listener<u64>) {
        let listener = self.network.listen(PORT);
        let near = self.network.connect(A, PORT).await.unwrap();
        let far = listener.accept().await;
        (near, far, listener)
    }

    async fn sleep_ms(&self, ms: u64) {
        self.executor.handle().sleep(Duration::from_millis(ms)).await;
    }
}

#[test]
fn messages_arrive_in_order_and_the_close_behind_them() {
    for seed in 0..20 {
        let world = World::new(seed);
        world.executor.run_until(async {
            let (near, far, _listener) = world.pair().await;
            for n in 0..100 {
                near.send(n).await.unwrap();
            }
            drop(near);
            for n in 0..100 {
                assert_eq!(far.recv().await, Ok(n));
            }
            assert_eq!(far.recv().await, Err(Broken::Closed));
        });
    }
}

#[test]
fn nobody_listens_and_nobody_answers_are_told_apart() {
    let world = World::new(1);
    world.executor.run_until(async {
        assert_eq!(world.network.connect(A, PORT).await.err(), Some(Unconnected::Refused));
        let listener = world.network.listen(PORT);
        world.network.cut(B, A);
        assert_eq!(world.network.connect(A, PORT).await.err(), Some(Unconnected::TimedOut));
        world.network.heal(B, A);
        assert!(world.network.connect(A, PORT).await.is_ok());
        drop(listener);
        assert_eq!(world.network.connect(A, PORT).await.err(), Some(Unconnected::Refused));
        world.network.power_off(B);
        assert_eq!(world.network.connect(A, PORT).await.err(), Some(Unconnected::TimedOut));
    });
}

#[test]
fn a_cut_in_one_direction_delays_that_one_alone() {
    let world = World::new(2);
    world.executor.run_until(async {
        let (near, far, _listener) = world.pair().await;
        world.network.cut(A, B);
        near.send(1).await.unwrap();
        far.send(2).await.unwrap();
        assert_eq!(near.recv().await, Ok(2));
        world.sleep_ms(3_000).await;
        assert_eq!(far.incoming.arrived(), 0);
        world.network.heal(A, B);
        assert_eq!(far.recv().await, Ok(1));
    });
}

#[test]
fn a_long_cut_breaks_the_sender_and_leaves_the_receiver_waiting() {
    let world = World::new(3);
    world.executor.run_until(async {
        let (near, far, _listener) = world.pair().await;
        world.network.cut(A, B);
        near.send(1).await.unwrap();
        world.sleep_ms(10_100).await;
        assert_eq!(near.recv().await, Err(Broken::TimedOut));
        world.network.heal(A, B);
        world.sleep_ms(100).await;
        assert_eq!(far.incoming.arrived(), 0, "half-open: it knows of nothing");
        far.send(2).await.unwrap();
        assert_eq!(far.recv().await, Err(Broken::Reset), "until it says something");
    });
}

#[test]
fn a_machine_without_power_is_silent_and_back_again_knows_nothing() {
    let world = World::new(4);
    world.executor.run_until(async {
        let (near, far, listener) = world.pair().await;
        far.send(5).await.unwrap();
        world.sleep_ms(100).await;
        world.network.power_off(B);
        drop((far, listener));
        assert_eq!(near.recv().await, Ok(5), "it had arrived");
        near.send(1).await.unwrap();
        world.sleep_ms(1_000).await;
        world.network.power_on(B);
        assert_eq!(near.recv().await, Err(Broken::Reset));
    });
}

#[test]
fn a_sender_waits_for_a_reader_that_stands_still() {
    let world = World::new(5);
    world.executor.run_until(async {
        let (near, far, _listener) = world.pair().await;
        let near = Rc::new(near);
        let sender = near.clone();
        let task = world.executor.spawn(async move {
            for n in 0..10_000 {
                sender.send(n).await.unwrap();
            }
        });
        world.sleep_ms(1_000).await;
        assert!(!task.is_finished());
        for n in 0..10_000 {
            assert_eq!(far.recv().await, Ok(n));
        }
        task.await;
    });
}

#[test]
fn a_reset_is_told_to_both_or_to_one() {
    for told in [Told::Both, Told::First] {
        let world = World::new(6);
        world.executor.run_until(async {
            let (near, far, _listener) = world.pair().await;
            world.network.reset(A, B, told);
            assert_eq!(near.recv().await, Err(Broken::Reset));
            if told == Told::First {
                far.send(1).await.unwrap();
            }
            assert_eq!(far.recv().await, Err(Broken::Reset));
        });
    }
}
