//! A compiled region: a program, and how its tensors are called in the graph.

use std::fmt;
use std::sync::Arc;

use tractd_kernels::{Arena, Program, RunError};

use crate::Port;
use crate::lower::Feed;

/// A region, packed. Immutable and shared; each session runs it in an arena of its own.
pub struct Region {
    program: Program,
    pub(crate) feeds: Vec<Feed>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Region {
    pub(crate) fn new(program: Program, feeds: Vec<Feed>, outputs: Vec<Port>) -> Region {
        let port = |feed: &Feed| match feed {
            Feed::Port(port) => Some(port.clone()),
            Feed::Constant(_) => None,
        };
        let inputs = feeds.iter().filter_map(port).collect();
        Region { program, feeds, inputs, outputs }
    }

    /// What it reads. A tensor can be there twice, to be read in two layouts.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What it writes.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The program, for what can be asked of it.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Runs once, on dense little-endian tensors in the order of [`Region::inputs`] and [`Region::outputs`].
    ///
    /// # Errors
    /// [`RunError`] when a tensor is missing or has the wrong number of bytes, or the arena is another program's.
    pub fn run(
        &self,
        arena: &mut Arena,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
    ) -> Result<(), RunError> {
        if self.inputs.len() == self.feeds.len() {
            return self.program.run(arena, inputs, outputs);
        }
        let mut given = inputs.iter();
        let mut all: Vec<&[u8]> = Vec::with_capacity(self.feeds.len());
        for feed in &self.feeds {
            all.push(match feed {
                Feed::Constant(bytes) => bytes,
                // A missing one has a wrong number of bytes: none.
                Feed::Port(_) => given.next().copied().unwrap_or_default(),
            });
        }
        self.program.run(arena, &all, outputs)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.program.fmt(f)
    }
}

/// A graph that is one region altogether: it runs without tract.
#[derive(Debug)]
pub struct Whole {
    pub(crate) region: Arc<Region>,
    /// By the region's inputs, which of the graph's.
    pub(crate) inputs: Vec<usize>,
    /// By the region's outputs, which of the graph's.
    pub(crate) outputs: Vec<usize>,
}

impl Whole {
    /// `inputs` and `outputs` are the graph's names, in its order. `None` if the region exchanges anything else.
    pub(crate) fn new(region: &Arc<Region>, inputs: &[&str], outputs: &[&str]) -> Option<Whole> {
        let places = |ports: &[Port], names: &[&str]| {
            ports
                .iter()
                .map(|port| names.iter().position(|name| *name == port.name))
                .collect::<Option<Vec<_>>>()
        };
        let whole = Whole {
            region: region.clone(),
            inputs: places(&region.inputs, inputs)?,
            outputs: places(&region.outputs, outputs)?,
        };
        (0..outputs.len()).all(|output| whole.outputs.contains(&output)).then_some(whole)
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The graph's outputs, in its order.
    pub fn outputs(&self) -> impl Iterator<Item = &Port> {
        (0..self.outputs.len()).map_while(|index| self.output(index))
    }

    /// The graph's output at this index.
    pub fn output(&self, index: usize) -> Option<&Port> {
        self.outputs.iter().position(|&output| output == index).map(|at| &self.region.outputs[at])
    }

    /// Runs once, on dense little-endian tensors in the order of the graph's own inputs and outputs.
    ///
    /// # Errors
    /// As [`Region::run`].
    pub fn run(
        &self,
        arena: &mut Arena,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
    ) -> Result<(), RunError> {
        let straight = |order: &[usize]| order.iter().enumerate().all(|(at, &index)| at == index);
        if outputs.len() != self.outputs.len() {
            return Err(RunError::Output(outputs.len().min(self.outputs.len())));
        }
        let mut given = Vec::new();
        let inputs = match straight(&self.inputs) && inputs.len() == self.inputs.len() {
            true => inputs,
            false => {
                given.extend(self.inputs.iter().map(|&index| inputs.get(index).copied().unwrap_or_default()));
                &given
            }
        };
        if straight(&self.outputs) {
            return self.region.run(arena, inputs, outputs);
        }
        let mut slots: Vec<Option<&mut [u8]>> =
            outputs.iter_mut().map(|output| Some(&mut **output)).collect();
        let taken = self.outputs.iter().map(|&index| slots.get_mut(index).and_then(Option::take));
        let mut ordered: Vec<&mut [u8]> = taken.map(Option::unwrap_or_default).collect();
        self.region.run(arena, inputs, &mut ordered)
    }
}
