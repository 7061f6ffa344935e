// The exact median of all pairwise distances of one set, without storing the pairs.
#pragma once

#include "pairs.h"

namespace stein {

// Midpoint median of the M(M-1)/2 distances; the root mean square where that is 0, and 1 where that
// is 0 too; NaN where a coordinate is not finite.
template <class T>
T median_distance_of_set(const T* x, Index m, Index d);

// The same from squared distances that exist already: row i holds the pairs (i, j > i) at
// squared[i * ld + j]. x serves the degenerate cases.
template <class T>
T median_from_gram(const T* squared, Index ld, const T* x, Index m, Index d);

// h from the median distance; rule is "liu_wang", "median" or "median_squared". At least a hundred
// times the smallest normal T: the square of a tiny distance leaves the range of T.
template <class T>
double bandwidth_from_median(double median, Index m, const char* rule);

}  // namespace stein
