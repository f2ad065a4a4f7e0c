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
    /// Texts that were cut off so far.
    cut_count: u32,
}

const ROOT: NodeId = NodeId(0);
/// Parent of texts that were cut off: no request finds them.
const LOST: NodeId = NodeId(1);

/// A text, represented by its last edge.
struct Node {
    parent: NodeId,
    edge: Arc<[TokenId]>,
    children: BTreeMap<Arc<[TokenId]>, NodeId>,
    /// Tokens of the text.
    token_count: u32,
    /// The pages of the last edge's tokens.
    pages: Vec<Option<PageId>>,
    /// Running requests whose text ends here.
    pin_count: u32,
    /// Present where a prefix hit may end: the windows before the text's end are cached.
    tail: Option<Tail>,
    is_lost: bool,
}

/// The windows before a position, kept so that a hit can end there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// Tokens that are computed again without it, as far as is known.
    pub(crate) worth: u32,
    /// Tails with the lowest priority are evicted first.
    pub(crate) priority: u64,
}

/// A page that has left the tree, and its place among the pages of its node.
pub(crate) type Released = (u32, PageId);

impl Tree {
    pub(crate) fn new(place_count: usize) -> Self {
        let (nodes, spare) = (Vec::new(), Vec::new());
        let mut tree = Self { nodes, spare, place_count, cut_count: 0 };
        for is_lost in [false, true] {
            let mut node = tree.node(ROOT, Arc::from([]), 0);
            (node.pin_count, node.is_lost) = (1, is_lost);
            tree.nodes.push(node);
        }
        tree
    }

    fn node(&self, parent: NodeId, edge: Arc<[TokenId]>, token_count: u32) -> Node {
        Node {
            parent,
            edge,
            children: BTreeMap::new(),
            token_count,
            pages: vec![None; self.place_count],
            pin_count: 0,
            tail: None,
            is_lost: self.nodes.get(parent.0 as usize).is_some_and(|node| node.is_lost),
        }
    }

    fn at(&self, node: NodeId) -> &Node {
        &self.nodes[node.0 as usize]
    }

    fn at_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }

    /// The node of the empty text under a salt, if it exists.
    pub(crate) fn start(&self, salt: &str) -> Option<NodeId> {
        self.child(ROOT, &salt_edge(salt))
    }

    /// The same; created if it is missing, and pinned.
    pub(crate) fn enter(&mut self, salt: &str) -> NodeId {
        let node = self.child_or_new(ROOT, &salt_edge(salt), 0);
        self.pin(node);
        node
    }

    pub(crate) fn child(&self, node: NodeId, edge: &[TokenId]) -> Option<NodeId> {
        self.at(node).children.get(edge).copied()
    }

    pub(crate) fn parent(&self, node: NodeId) -> NodeId {
        self.at(node).parent
    }

    /// Moves a pin one edge further, to a node that is created if it is missing.
    pub(crate) fn advance(&mut self, node: NodeId, edge: &[TokenId]) -> NodeId {
        let token_count = self.at(node).token_count + edge.len() as u32;
        let child = self.child_or_new(node, edge, token_count);
        self.pin(child);
        // It has a child, so it stays.
        self.at_mut(node).pin_count -= 1;
        child
    }

    fn child_or_new(&mut self, parent: NodeId, edge: &[TokenId], token_count: u32) -> NodeId {
        if let Some(child) = self.child(parent, edge) {
            return child;
        }
        let edge: Arc<[TokenId]> = edge.into();
        let node = self.node(parent, edge.clone(), token_count);
        let id = self.spare.pop().unwrap_or(NodeId(self.nodes.len() as u32));
        if id.0 as usize == self.nodes.len() {
            self.nodes.push(node);
        } else {
            self.nodes[id.0 as usize] = node;
        }
        self.at_mut(parent).children.insert(edge, id);
        id
    }

    /// Keeps a node, whether a hit may end there or not.
    pub(crate) fn pin(&mut self, node: NodeId) {
        self.at_mut(node).pin_count += 1;
    }

    /// Removes a pin, and the nodes that are then without use. Returns their pages.
    #[must_use]
    pub(crate) fn unpin(&mut self, node: NodeId) -> Vec<Released> {
        self.at_mut(node).pin_count -= 1;
        self.prune(node)
    }

    pub(crate) fn page(&self, spot: TreePlace) -> Option<PageId> {
        self.at(spot.node).pages[spot.place as usize]
    }

    pub(crate) fn set_page(&mut self, spot: TreePlace, page: Option<PageId>) {
        self.at_mut(spot.node).pages[spot.place as usize] = page;
    }

    pub(crate) fn tail(&self, node: NodeId) -> Option<Tail> {
        self.at(node).tail
    }

    pub(crate) fn set_tail(&mut self, node: NodeId, tail: Option<Tail>) {
        self.at_mut(node).tail = tail;
    }

    pub(crate) fn token_count(&self, node: NodeId) -> u32 {
        self.at(node).token_count
    }

    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        self.at(node).is_lost
    }

    /// Whether only one request's text ends here, and none continues it.
    pub(crate) fn is_alone(&self, node: NodeId) -> bool {
        self.at(node).pin_count == 1 && self.at(node).children.is_empty()
    }

    /// The nodes of a text, from the salt's to this one.
    pub(crate) fn path(&self, node: NodeId) -> Vec<NodeId> {
        let parent = |id: &NodeId| Some(self.at(*id).parent).filter(|id| *id != ROOT);
        let mut path: Vec<NodeId> = std::iter::successors(Some(node), parent).collect();
        path.reverse();
        path
    }

    /// The last `count` nodes of a text, in order.
    pub(crate) fn last(&self, node: NodeId, count: u32) -> Vec<NodeId> {
        let parents = std::iter::successors(Some(node), |id| Some(self.at(*id).parent));
        let mut last: Vec<NodeId> = parents.take(count as usize).collect();
        last.reverse();
        last
    }

    /// A node and its subtree: the texts that continue it. A node comes before its children.
    pub(crate) fn below(&self, node: NodeId) -> Vec<NodeId> {
        let mut all = vec![node];
        let mut seen = 0;
        while let Some(id) = all.get(seen) {
            all.extend(self.at(*id).children.values());
            seen += 1;
        }
        all
    }

    /// Cuts off the first edge of a text, and all texts that start with it: no request finds them
    /// any more. Running requests may go on there.
    pub(crate) fn cut(&mut self, node: NodeId) {
        for id in self.below(node) {
            self.at_mut(id).is_lost = true;
        }
        self.cut_count += 1;
        let edge: Arc<[TokenId]> = Arc::from([self.cut_count]);
        let cut = self.at_mut(node);
        let parent = std::mem::replace(&mut cut.parent, LOST);
        let old = std::mem::replace(&mut cut.edge, edge.clone());
        self.at_mut(parent).children.remove(&old);
        self.at_mut(LOST).children.insert(edge, node);
        let released = self.prune(parent);
        debug_assert_eq!(released, [], "above the first edge there is only the salt");
    }

    /// Removes nodes without use: those among `nodes`, in which parents come before their children,
    /// and those above the first. Returns their pages.
    #[must_use]
    pub(crate) fn sweep(&mut self, nodes: &[NodeId]) -> Vec<Released> {
        let mut released = Vec::new();
        for id in nodes[1..].iter().rev() {
            if self.at(*id).is_useless() {
                released.extend(self.remove(*id));
            }
        }
        released.extend(self.prune(nodes[0]));
        released
    }

    /// Removes a node, and those above it, that are without use. Returns their pages.
    #[must_use]
    pub(crate) fn prune(&mut self, mut id: NodeId) -> Vec<Released> {
        let mut released = Vec::new();
        while self.at(id).is_useless() {
            let parent = self.at(id).parent;
            released.extend(self.remove(id));
            id = parent;
        }
        released
    }

    fn remove(&mut self, id: NodeId) -> impl Iterator<Item = Released> + use<> {
        let node = self.at_mut(id);
        let (parent, edge) = (node.parent, std::mem::take(&mut node.edge));
        let pages = std::mem::take(&mut node.pages);
        self.spare.push(id);
        self.at_mut(parent).children.remove(&edge);
        (0..).zip(pages).filter_map(|(place, page)| Some((place, page?)))
    }

    /// Checks that every node has a tail, a child or a pin, given how many requests are at each
    /// node. Returns the nodes that a request may find, and the number of all pages.
    pub(crate) fn check(&self, pins: &BTreeMap<u32, u32>) -> Result<(Vec<NodeId>, usize), String> {
        let (mut page_count, mut seen_count) = (0, 0);
        let mut found = Vec::new();
        let mut pending = vec![ROOT, LOST];
        while let Some(id) = pending.pop() {
            let node = self.at(id);
            let pinned = pins.get(&id.0).copied().unwrap_or_default() + u32::from(id.0 < 2);
            if node.pin_count != pinned || node.is_useless() {
                return Err(format!("node {}: {} pins, {pinned} known", id.0, node.pin_count));
            }
            for (edge, child) in &node.children {
                let below = self.at(*child);
                if below.parent != id || below.edge != *edge || below.is_lost != node.is_lost {
                    return Err(format!("node {} does not hang where {} says", child.0, id.0));
                }
                pending.push(*child);
            }
            let own_count = node.pages.iter().flatten().count();
            if node.is_lost && (own_count > 0 || node.tail.is_some()) {
                return Err(format!("node {} is lost, and has {own_count} pages", id.0));
            }
            if !node.is_lost && node.token_count > 0 {
                found.push(id);
            }
            page_count += own_count;
            seen_count += 1;
        }
        if seen_count + self.spare.len() != self.nodes.len() {
            return Err(format!("{seen_count} of {} nodes can be reached", self.nodes.len()));
        }
        Ok((found, page_count))
    }
}

impl Node {
    fn is_useless(&self) -> bool {
        self.pin_count == 0 && self.children.is_empty() && self.tail.is_none()
    }
}

fn salt_edge(salt: &str) -> Vec<TokenId> {
    salt.bytes().map(TokenId::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_live_as_long_as_a_tail_a_child_or_a_pin() {
        let mut tree = Tree::new(2);
        assert_eq!(tree.start("a"), None);
        let start = tree.enter("a");
        let first = tree.advance(start, &[1, 2]);
        let second = tree.advance(first, &[3, 4]);
        let spot = TreePlace { node: second, place: 1 };
        tree.set_page(spot, Some(PageId(7)));
        tree.set_tail(second, Some(Tail { worth: 4, priority: 4 }));
        assert_eq!(tree.check(&BTreeMap::from([(second.0, 1)])).unwrap().1, 1);
        assert_eq!(tree.unpin(second), []);
        assert_eq!(tree.start("a"), Some(start));
        assert_eq!(tree.child(first, &[3, 4]), Some(second));
        assert_eq!((tree.child(first, &[3, 5]), tree.start("b")), (None, None));
        assert_eq!((tree.page(spot), tree.token_count(second)), (Some(PageId(7)), 4));
        tree.set_tail(second, None);
        assert_eq!(tree.prune(second), [(1, PageId(7))]);
        assert_eq!(tree.start("a"), None);
        assert_eq!(tree.check(&BTreeMap::new()), Ok((vec![], 0)));
        assert_ne!(tree.enter("b"), ROOT);
    }

    #[test]
    fn a_text_that_was_cut_off_is_not_found_and_goes_on() {
        let mut tree = Tree::new(1);
        let start = tree.enter("");
        let first = tree.advance(start, &[1]);
        tree.cut(first);
        assert_eq!(tree.start(""), None);
        let second = tree.advance(first, &[2]);
        assert!(tree.is_lost(second) && tree.path(second)[1..] == [first, second]);
        let again = tree.enter("");
        let other = tree.advance(again, &[1]);
        assert!(other != first && !tree.is_lost(other));
        tree.check(&BTreeMap::from([(second.0, 1), (other.0, 1)])).unwrap();
        assert_eq!((tree.unpin(second), tree.unpin(other)), (vec![], vec![]));
        assert_eq!(tree.check(&BTreeMap::new()), Ok((vec![], 0)));
    }
}
