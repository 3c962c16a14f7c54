// Depthwise convolution with a kernel of its own; other grouped convolutions are in grouped.cpp.
#pragma once

#include "../windows.h"

namespace svertka::INSTRUCTIONS {

// Whether `depthwise` computes this convolution.
bool has_depthwise_kernel(const Window& shape, Index groups);

// Weights: (tap in y, tap in x, channel). `narrow`: whether maps consist of bfloat16.
void depthwise(const Window& shape, const void* input, const float* weights, const Epilogue& epilogue, void* output,
               bool narrow, int threads);

}  // namespace svertka::INSTRUCTIONS
