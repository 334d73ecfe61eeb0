//! Reading znodes, many in one request.
//!
//! Owns: how much is asked for at a time.

use std::collections::BTreeMap;

use corelog_replication::coordination::{Key, Version};
use futures_util::future::try_join_all;
use zookeeper_client::{Client, Error, MultiReadResult};

use super::tree::{Stamp, Znode};

/// Znodes of one request.
const REQUEST_ZNODES: usize = 200;
/// Requests under way.
const REQUESTS: usize = 8;

/// Reads znodes, in the order of the paths; `None` if one is not there.
pub(super) async fn read(client: &Client, paths: &[String]) -> Result<Vec<Option<Znode>>, Error> {
    let mut znodes = Vec::with_capacity(paths.len());
    for part in paths.chunks(REQUEST_ZNODES * REQUESTS) {
        let requests = part.chunks(REQUEST_ZNODES).map(|paths| {
            let mut reader = client.new_multi_reader();
            let added = paths.iter().try_for_each(|path| reader.add_get_data(path));
            let results = reader.commit();
            async move {
                added?;
                results.await
            }
        });
        for result in try_join_all(requests).await?.into_iter().flatten() {
            znodes.push(match result {
                MultiReadResult::Data { data, stat } => Some(Znode {
                    value: data.into(),
                    version: Version(stat.version.into()),
                    stamp: Stamp { created: stat.czxid, changed: stat.mzxid },
                    has_children: stat.num_children > 0,
                }),
                MultiReadResult::Error { err: Error::NoNode } => None,
                MultiReadResult::Error { err } => return Err(err),
                other => return Err(Error::UnexpectedError(format!("data was asked for: {other:?}"))),
            });
        }
    }
    if znodes.len() != paths.len() {
        let problem = format!("{} znodes were asked for, {} came", paths.len(), znodes.len());
        return Err(Error::UnexpectedError(problem));
    }
    Ok(znodes)
}

/// The children of znodes, as paths. One that is not there has none.
async fn children(client: &Client, parents: &[String]) -> Result<Vec<String>, Error> {
    let mut children = Vec::new();
    for parents in parents.chunks(REQUEST_ZNODES) {
        let mut reader = client.new_multi_reader();
        parents.iter().try_for_each(|parent| reader.add_get_children(parent))?;
        for (parent, result) in parents.iter().zip(reader.commit().await?) {
            let parent = parent.trim_end_matches('/');
            match result {
                MultiReadResult::Children { children: names } => {
                    children.extend(names.iter().map(|name| format!("{parent}/{name}")));
                }
                MultiReadResult::Error { err: Error::NoNode } => {}
                MultiReadResult::Error { err } => return Err(err),
                other => return Err(Error::UnexpectedError(format!("children were asked for: {other:?}"))),
            }
        }
    }
    Ok(children)
}

/// Reads everything below the root, one level after the other.
pub(super) async fn read_all(client: &Client) -> Result<BTreeMap<Key, Znode>, Error> {
    let mut found = BTreeMap::new();
    let mut level = children(client, &["/".to_owned()]).await?;
    while !level.is_empty() {
        let znodes = read(client, &level).await?;
        let mut parents = Vec::new();
        for (path, znode) in level.into_iter().zip(znodes) {
            let Some(znode) = znode else { continue };
            if znode.has_children {
                parents.push(path.clone());
            }
            found.insert(path, znode);
        }
        level = children(client, &parents).await?;
    }
    Ok(found)
}
