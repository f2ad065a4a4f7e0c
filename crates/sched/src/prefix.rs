//! The prefix cache: a tree whose edges are runs of tokens. Texts are compared, never hashed, so
//! two texts cannot be confused. An edge has as many tokens as whole pages of every group need; the
//! first edge is the cache salt, which separates users. The tree knows the pages of a node, not
//! their users.

use std::collections::BTreeMap;
use std::sync::Arc;

use kilotok_abi::{PageId, TokenId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(pub(crate) u32);

/// Position of a page in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreePlace {
    pub(crate) node: NodeId,
    /// Index among the node's pages, those of all groups counted.
    pub(crate) place: u32,
}

pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Nodes not in use.
    spare: Vec<NodeId>,
    /// Pages of a node, all groups together.
    place_count: usize,
}

const ROOT: NodeId = NodeId(0);

/// A text, represented by its last edge.
struct Node {
    parent: NodeId,
    edge: Arc<[TokenId]>,
    children: BTreeMap<Arc<[TokenId]>, NodeId>,
    /// The pages of the last edge's tokens.
    pages: Vec<Option<PageId>>,
    /// Running requests whose text ends here.
    pin_count: u32,
}

impl Tree {
    pub(crate) fn new(place_count: usize) -> Self {
        let mut tree = Self { nodes: Vec::new(), spare: Vec::new(), place_count };
        tree.nodes.push(tree.node(ROOT, Arc::from([])));
        tree.nodes[0].pin_count = 1;
        tree
    }

    fn node(&self, parent: NodeId, edge: Arc<[TokenId]>) -> Node {
        let pages = vec![None; self.place_count];
        Node { parent, edge, children: BTreeMap::new(), pages, pin_count: 0 }
    }

    /// The node of the empty text under a salt, if it exists.
    pub(crate) fn start(&self, salt: &str) -> Option<NodeId> {
        self.child(ROOT, &salt_edge(salt))
    }

    /// The same; created if it is missing, and pinned.
    pub(crate) fn enter(&mut self, salt: &str) -> NodeId {
        let node = self.child_or_new(ROOT, &salt_edge(salt));
        self.pin(node);
        node
    }

    pub(crate) fn child(&self, node: NodeId, edge: &[TokenId]) -> Option<NodeId> {
        self.nodes[node.0 as usize].children.get(edge).copied()
    }

    /// Moves a pin one edge further, to a node that is created if it is missing.
    pub(crate) fn advance(&mut self, node: NodeId, edge: &[TokenId]) -> NodeId {
        let child = self.child_or_new(node, edge);
        self.pin(child);
        self.unpin(node);
        child
    }

    fn child_or_new(&mut self, parent: NodeId, edge: &[TokenId]) -> NodeId {
        if let Some(child) = self.child(parent, edge) {
            return child;
        }
        let edge: Arc<[TokenId]> = edge.into();
        let node = self.node(parent, edge.clone());
        let id = self.spare.pop().unwrap_or(NodeId(self.nodes.len() as u32));
        if id.0 as usize == self.nodes.len() {
            self.nodes.push(node);
        } else {
            self.nodes[id.0 as usize] = node;
        }
        self.nodes[parent.0 as usize].children.insert(edge, id);
        id
    }

    /// Keeps a node, whether it has pages or not.
    pub(crate) fn pin(&mut self, node: NodeId) {
        self.nodes[node.0 as usize].pin_count += 1;
    }

    pub(crate) fn unpin(&mut self, node: NodeId) {
        self.nodes[node.0 as usize].pin_count -= 1;
        self.prune(node);
    }

    pub(crate) fn page(&self, spot: TreePlace) -> Option<PageId> {
        self.nodes[spot.node.0 as usize].pages[spot.place as usize]
    }

    pub(crate) fn set_page(&mut self, spot: TreePlace, page: PageId) {
        self.nodes[spot.node.0 as usize].pages[spot.place as usize] = Some(page);
    }

    /// The nodes of a text, from the salt's to this one.
    pub(crate) fn path(&self, node: NodeId) -> Vec<NodeId> {
        let parent = |id: &NodeId| Some(self.nodes[id.0 as usize].parent).filter(|id| *id != ROOT);
        let mut path: Vec<NodeId> = std::iter::successors(Some(node), parent).collect();
        path.reverse();
        path
    }

    /// A node and its subtree: the texts that continue it.
    pub(crate) fn below(&self, node: NodeId) -> Vec<NodeId> {
        let mut all = vec![node];
        let mut seen = 0;
        while let Some(id) = all.get(seen) {
            let children = self.nodes[id.0 as usize].children.values().copied();
            all.extend(children.collect::<Vec<_>>());
            seen += 1;
        }
        all
    }

    /// Removes a page, and the nodes that are then without use.
    pub(crate) fn clear(&mut self, spot: TreePlace) {
        self.nodes[spot.node.0 as usize].pages[spot.place as usize] = None;
        self.prune(spot.node);
    }

    fn prune(&mut self, mut id: NodeId) {
        while self.nodes[id.0 as usize].is_useless() {
            let node = &mut self.nodes[id.0 as usize];
            let (parent, edge) = (node.parent, std::mem::take(&mut node.edge));
            self.spare.push(id);
            self.nodes[parent.0 as usize].children.remove(&edge);
            id = parent;
        }
    }

    /// Checks that every node has a page, a child or a pin, and every page its entry in the pools,
    /// given how many requests are at each node.
    pub(crate) fn check(&self, pins: &BTreeMap<u32, u32>) -> Result<usize, String> {
        let mut page_count = 0;
        let mut seen_count = 0;
        let mut pending = vec![ROOT];
        while let Some(id) = pending.pop() {
            let node = &self.nodes[id.0 as usize];
            let pinned = pins.get(&id.0).copied().unwrap_or_default() + u32::from(id == ROOT);
            if node.pin_count != pinned || node.is_useless() {
                return Err(format!("node {}: {} pins, {pinned} known", id.0, node.pin_count));
            }
            for (edge, child) in &node.children {
                let below = &self.nodes[child.0 as usize];
                if below.parent != id || below.edge != *edge {
                    return Err(format!("node {} does not hang where {} says", child.0, id.0));
                }
                pending.push(*child);
            }
            page_count += node.pages.iter().flatten().count();
            seen_count += 1;
        }
        if seen_count + self.spare.len() != self.nodes.len() {
            return Err(format!("{seen_count} of {} nodes can be reached", self.nodes.len()));
        }
        Ok(page_count)
    }
}

impl Node {
    fn is_useless(&self) -> bool {
        self.pin_count == 0 && self.children.is_empty() && self.pages.iter().all(Option::is_none)
    }
}

fn salt_edge(salt: &str) -> Vec<TokenId> {
    salt.bytes().map(TokenId::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_live_as_long_as_a_page_a_child_or_a_pin() {
        let mut tree = Tree::new(2);
        assert_eq!(tree.start("a"), None);
        let start = tree.enter("a");
        let first = tree.advance(start, &[1, 2]);
        let second = tree.advance(first, &[3, 4]);
        let spot = TreePlace { node: second, place: 1 };
        tree.set_page(spot, PageId(7));
        assert_eq!(tree.check(&BTreeMap::from([(second.0, 1)])), Ok(1));
        tree.unpin(second);
        assert_eq!(tree.start("a"), Some(start));
        assert_eq!(tree.child(first, &[3, 4]), Some(second));
        assert_eq!((tree.child(first, &[3, 5]), tree.start("b")), (None, None));
        assert_eq!(tree.page(spot), Some(PageId(7)));
        tree.clear(spot);
        assert_eq!(tree.start("a"), None);
        assert_eq!(tree.check(&BTreeMap::new()), Ok(0));
        assert_ne!(tree.enter("b"), ROOT);
    }
}
