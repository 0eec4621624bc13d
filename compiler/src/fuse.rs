//! Steps joined where that gives the same bits: tables of tables, pairs of functions of one tensor, and what follows a
//! convolution.

use tractd_kernels::{BufferId, Clamp, ResidualSpec, StepSpec, TableSpec};

use crate::ir::{Ir, Kind, OpId};

type Table = Box<[u8; 256]>;

/// `wanted` says which buffers are read from outside. Afterwards, ops nobody needs are gone. Returns where each op went.
pub(crate) fn fuse(ir: &mut Ir, levels: &[usize], wanted: &[bool]) -> Vec<OpId> {
    let mut fuse = Fuse { ir, levels, readers: vec![], wanted, moved: (0..levels.len()).collect() };
    for op in 0..levels.len() {
        fuse.fold_functions(op);
    }
    fuse.sweep();
    for op in 0..levels.len() {
        fuse.follow_convolution(op);
    }
    fuse.sweep();
    fuse.moved
}

struct Fuse<'a> {
    ir: &'a mut Ir,
    levels: &'a [usize],
    /// By buffer.
    readers: Vec<usize>,
    wanted: &'a [bool],
    moved: Vec<OpId>,
}

impl Fuse<'_> {
    /// Removes what nobody needs, and counts who needs the rest.
    fn sweep(&mut self) {
        self.readers = self.wanted.iter().map(|&wanted| usize::from(wanted)).collect();
        let mut written = vec![None; self.ir.ops.len()];
        for (id, buffer) in self.ir.buffers.iter().enumerate() {
            written[buffer.writer] = Some(id);
        }
        for op in (0..self.ir.ops.len()).rev() {
            if written[op].is_some_and(|buffer| self.readers[buffer] == 0) {
                self.ir.ops[op].kind = Kind::Gone;
            }
            for buffer in self.ir.ops[op].kind.reads() {
                self.readers[buffer.0] += 1;
            }
        }
    }

    /// The buffer a tensor is a function of, and the function.
    fn root(&self, buffer: BufferId, level: usize) -> (BufferId, Table) {
        let writer = self.ir.buffer(buffer).writer;
        match &self.ir.ops[writer].kind {
            Kind::Step(StepSpec::Table(step)) if self.levels[writer] == level => {
                (step.input, step.table.clone())
            }
            _ => (buffer, Box::new(std::array::from_fn(|value| value as u8))),
        }
    }

    /// Tables of tables, and sums and products of functions of one tensor: one table.
    fn fold_functions(&mut self, op: OpId) {
        let level = self.levels[op];
        let zero = |buffer: BufferId| self.ir.buffer(buffer).zero;
        let folded = match &self.ir.ops[op].kind {
            Kind::Step(StepSpec::Table(step)) => {
                let (root, inner) = self.root(step.input, level);
                let table = std::array::from_fn(|value| step.table[usize::from(inner[value])]);
                (root, Box::new(table), step.output)
            }
            Kind::Step(StepSpec::Mul(step)) => {
                let ((root, a), (other, b)) = (self.root(step.a, level), self.root(step.b, level));
                if root != other {
                    return;
                }
                let (za, zb, zy) = (zero(step.a), zero(step.b), zero(step.output));
                let each = |value: usize| {
                    let product =
                        (i32::from(a[value]) - i32::from(za)) * (i32::from(b[value]) - i32::from(zb));
                    bounded(product as f32 * step.multiplier + f32::from(zy), step.clamp)
                };
                (root, Box::new(std::array::from_fn(each)), step.output)
            }
            Kind::Step(StepSpec::Add(step)) => {
                let ((root, a), (other, b)) = (self.root(step.a, level), self.root(step.b, level));
                if root != other {
                    return;
                }
                let (za, zb, zy) = (zero(step.a), zero(step.b), zero(step.output));
                let less = |value: u8, zero: u8| f32::from(value) - f32::from(zero);
                let each = |value: usize| {
                    let a = less(a[value], za) * step.a_multiplier;
                    let b = less(b[value], zb) * step.b_multiplier;
                    bounded((a + b) + f32::from(zy), step.clamp)
                };
                (root, Box::new(std::array::from_fn(each)), step.output)
            }
            _ => return,
        };
        let (input, table, output) = folded;
        // A pair of one shape only: a second operand that repeats is another tensor than the first.
        if self.ir.buffer(input).dims == self.ir.buffer(output).dims {
            self.ir.ops[op].kind = Kind::Step(StepSpec::Table(TableSpec { input, output, table }));
        }
    }

    /// Puts a convolution into the place of the sum or table that alone reads it.
    fn follow_convolution(&mut self, op: OpId) {
        match &self.ir.ops[op].kind {
            Kind::Step(StepSpec::Add(step)) => {
                let step = step.clone();
                let same = self.ir.buffer(step.a).dims == self.ir.buffer(step.b).dims;
                // Of two convolutions the later: what it adds is there by then.
                let mut sides = [(step.a, step.b), (step.b, step.a)];
                sides.sort_by_key(|(own, _)| std::cmp::Reverse(self.ir.buffer(*own).writer));
                let Some((own, other)) =
                    sides.into_iter().find(|(own, _)| same && self.takes(*own, op, true))
                else {
                    return;
                };
                let multipliers = (step.a_multiplier, step.b_multiplier);
                let (a, b) = if own == step.a { multipliers } else { (multipliers.1, multipliers.0) };
                let zero_point = self.ir.buffer(step.output).zero;
                let clamp = step.clamp;
                self.join(own, op, step.output, |conv| {
                    let residual =
                        ResidualSpec { buffer: other, a_multiplier: a, b_multiplier: b, zero_point, clamp };
                    conv.residual = Some(residual);
                });
            }
            Kind::Step(StepSpec::Table(step)) if self.takes(step.input, op, false) => {
                let TableSpec { input, output, table } = step.clone();
                self.join(input, op, output, |conv| conv.table = Some(table));
            }
            _ => {}
        }
    }

    /// Whether the buffer is a convolution's that only `op` reads, and that has nothing joined that would come after.
    fn takes(&self, buffer: BufferId, op: OpId, sum: bool) -> bool {
        let writer = self.ir.buffer(buffer).writer;
        let Kind::Step(StepSpec::Conv(conv)) = &self.ir.ops[writer].kind else { return false };
        let free = conv.table.is_none() && !(sum && conv.residual.is_some());
        free && self.readers[buffer.0] == 1 && self.levels[writer] == self.levels[op]
    }

    fn join(
        &mut self,
        buffer: BufferId,
        op: OpId,
        output: BufferId,
        with: impl FnOnce(&mut tractd_kernels::ConvSpec<'_>),
    ) {
        let writer = self.ir.buffer(buffer).writer;
        let mut kind = std::mem::replace(&mut self.ir.ops[writer].kind, Kind::Gone);
        if let Kind::Step(StepSpec::Conv(conv)) = &mut kind {
            conv.output = output;
            with(conv);
        }
        self.ir.ops[op].kind = kind;
        self.moved.iter_mut().filter(|to| **to == writer).for_each(|to| *to = op);
    }
}

/// As the kernels do it.
fn bounded(value: f32, clamp: Clamp) -> u8 {
    value.max(f32::from(clamp.low)).min(f32::from(clamp.high)).round_ties_even() as u8
}
