//! How a network may use its caches.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a panic in a test is a failed test")]

use roundhouse_tensorrt_network::{DataType, LayerKind, Network, NetworkError, TensorId};

struct Caches {
    network: Network,
    cache: TensorId,
    update: TensorId,
    write_indices: TensorId,
}

fn caches() -> Caches {
    let mut network = Network::new("test");
    let cache = network.add_input("cache", DataType::Half, &[1, 1, 8, 4]).unwrap();
    let update = network.add_input("update", DataType::Half, &[1, 1, 8, 4]).unwrap();
    let write_indices = network.add_input("write_indices", DataType::Int32, &[1]).unwrap();
    Caches { network, cache, update, write_indices }
}

impl Caches {
    fn update(&mut self, name: &str, cache: TensorId) -> TensorId {
        let operands = [cache, self.update, self.write_indices];
        self.network.add_layer(name, LayerKind::KvCacheUpdate, &operands).unwrap()
    }

    fn cast(&mut self, name: &str, x: TensorId) -> TensorId {
        self.network.add_layer(name, LayerKind::Cast { to: DataType::Half }, &[x]).unwrap()
    }

    fn output(&mut self, tensor: TensorId, name: &str, aliases: Option<&str>) {
        self.network.mark_output(tensor, name, aliases.map(str::to_owned)).unwrap();
    }

    #[track_caller]
    fn refused(&self, name: &str, words: &str) {
        match self.network.verify() {
            Err(NetworkError::Cache { layer, what }) => {
                assert_eq!(layer, name, "{what}");
                assert!(what.contains(words), "{what:?} does not say {words:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_cache_is_changed_in_place_and_read_afterwards() {
    let mut caches = caches();
    let updated = caches.update("updated", caches.cache);
    caches.output(updated, "cache_out", Some("cache"));
    let read = caches.cast("read", updated);
    caches.output(read, "out", None);
    caches.network.verify().unwrap();
}

#[test]
fn a_cache_is_an_input() {
    let mut caches = caches();
    let made = caches.cast("made", caches.cache);
    let updated = caches.update("updated", made);
    caches.output(updated, "cache_out", Some("cache"));
    caches.refused("updated", "\"made\" is no input");
}

#[test]
fn an_updated_cache_is_an_output_in_its_place() {
    let mut unmarked = caches();
    unmarked.update("updated", unmarked.cache);
    unmarked.refused("updated", "no output");

    let mut elsewhere = caches();
    let updated = elsewhere.update("updated", elsewhere.cache);
    elsewhere.output(updated, "cache_out", None);
    elsewhere.refused("updated", "must alias the cache \"cache\"");

    let mut another = caches();
    let updated = another.update("updated", another.cache);
    another.output(updated, "cache_out", Some("update"));
    another.refused("updated", "must alias the cache \"cache\"");
}

#[test]
fn nothing_else_reads_or_changes_a_cache() {
    let mut read = caches();
    let updated = read.update("updated", read.cache);
    read.output(updated, "cache_out", Some("cache"));
    read.cast("read", read.cache);
    read.refused("updated", "read by \"read\" too");

    let mut twice = caches();
    let updated = twice.update("updated", twice.cache);
    twice.output(updated, "cache_out", Some("cache"));
    let again = twice.update("again", twice.cache);
    twice.output(again, "again_out", Some("cache"));
    twice.refused("updated", "read by \"again\" too");

    let mut itself = caches();
    itself.update = itself.cache;
    let updated = itself.update("updated", itself.cache);
    itself.output(updated, "cache_out", Some("cache"));
    itself.refused("updated", "is its update");
}

#[test]
fn only_caches_are_changed_in_place() {
    let mut caches = caches();
    let update = caches.update;
    let cast = caches.cast("cast", update);
    caches.output(cast, "out", Some("update"));
    assert!(matches!(caches.network.verify(), Err(NetworkError::Output { output, .. }) if output == "out"));
}
