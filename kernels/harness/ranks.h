// A model's constants, except the number of ranks, which is HARNESS_RANKS. Included before anything
// else that includes them.
#pragma once

#include "kilotok/shape.cuh"

#define RANKS RANKS_OF_MODEL
#include "kilotok/model.h"
#undef RANKS
namespace kilotok {
constexpr int RANKS = HARNESS_RANKS;
}
