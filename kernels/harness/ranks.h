// A model's constants, but for the number of ranks, which is HARNESS_RANKS. Comes before whatever
// else includes them.
#pragma once

#include "kilotok/shape.cuh"

#define RANKS RANKS_OF_MODEL
#include "kilotok/model.h"
#undef RANKS
namespace kilotok {
constexpr int RANKS = HARNESS_RANKS;
}
