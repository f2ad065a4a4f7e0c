// What the sampling phases need of a model: the largest vocabulary that is tested.
#pragma once

#include "kilotok/shape.cuh"

namespace kilotok {

constexpr int GRID = 132;
constexpr int TOKENS_MAX = 64;
constexpr int VOCAB = 152576;
constexpr int DRAFT_ROWS = 8;
// Nothing is multiplied; harnesses name it.
constexpr int HIDDEN = 0;

}  // namespace kilotok
