// Tile primitives for the instruction set that torch calls DEFAULT.
#include <cstdint>
#include <limits>
#include <type_traits>

#define STEIN_ISA generic
#define STEIN_ISA_NAME "DEFAULT"
#define STEIN_VECTOR_BYTES 16
#define STEIN_ROWS 4  // rows x columns of vectors held in registers by a product
#define STEIN_COLUMNS 2
#include "tile_impl.h"
