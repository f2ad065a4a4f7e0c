//! Weights so large that numbers overflow: on a GPU as on the reference the row ends in a fault,
//! never in a token.

use half::bf16;
use kilotok_cpu::CpuEngine;
use kilotok_engine::{Engine, RowFault};
use kilotok_model::LayerWeight::{self, Down, Gate, InputNorm, Output, PostNorm, Up};
use kilotok_model::{Dtype, Slice, WeightDecl, WeightId};
use kilotok_testkit::host::{Host, How, Request};
use kilotok_weights::{Quiet, Tensor, TensorData, WeightError, WeightSource};

use crate::{DENSE, absent, cuda_from, sizes};

/// Times this, most numbers still fit F32 and BF16, and no sum of their squares does.
const LARGE: f32 = 1e30;

/// A model, some of whose weights are so much larger.
struct Scaled {
    weights: &'static [LayerWeight],
}

impl WeightSource for Scaled {
    fn read(&self, decl: &WeightDecl, slice: &Slice) -> Result<Tensor, WeightError> {
        let mut tensor = DENSE.read(decl, slice)?;
        if matches!(decl.id, WeightId::Layer(_, _, weight) if self.weights.contains(&weight)) {
            match &mut tensor.data {
                TensorData::F32(values) | TensorData::Fp8 { scales: values, .. } => {
                    for value in values {
                        *value *= LARGE;
                    }
                }
                TensorData::Bf16(values) => {
                    for value in values {
                        *value = bf16::from_f32(value.to_f32() * LARGE);
                    }
                }
                TensorData::Mxfp4 { .. } => unreachable!("a dense model has no experts"),
            }
        }
        Ok(tensor)
    }

    fn dtype(&self, decl: &WeightDecl) -> Result<Dtype, WeightError> {
        DENSE.dtype(decl)
    }
}

#[test]
fn what_overflows_is_a_fault() {
    if let Some(reason) = absent(1) {
        return println!("skipped: {reason}");
    }
    let request = Request::greedy((0..20).collect(), 4);
    for weights in [&[Output][..], &[Gate], &[Gate, Up], &[Down], &[InputNorm], &[PostNorm]] {
        let source = Scaled { weights };
        let reference = CpuEngine::start(DENSE.spec(), &source, &sizes(1), &Quiet).unwrap();
        let found = cuda_from(DENSE.spec(), &source, &sizes(1));
        for mut engine in [Box::new(reference) as Box<dyn Engine>, found] {
            let reply = Host::new(&mut *engine, 0).run(&request, &How::default()).unwrap();
            let is_told = matches!(reply.fault, Some(RowFault::NotFinite { .. }));
            assert!(is_told && reply.tokens.is_empty(), "{weights:?}: {:?}", reply.tokens);
        }
    }
}
