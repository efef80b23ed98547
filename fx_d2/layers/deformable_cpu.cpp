// Multi-scale deformable attention on CPUs: weighted sum of bilinear samples from several maps, and its gradients.
//
// Shapes as in fx_d2/layers/deformable_attention.py, all arrays contiguous:
//   value (batch, tokens, heads, dim), locations (batch, queries, heads, levels, points, 2),
//   weights (batch, queries, heads, levels, points), out (batch, queries, heads, dim); maps holds (height, width) of each level.
//
// Results do not depend on the number of threads: each thread owns what it writes and accumulates it in a fixed order.
// Arithmetic follows IEEE 754; NaN and infinity in the inputs propagate.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

struct Sizes {
  int64_t batch, tokens, heads, dim, levels, points, queries;
};

constexpr int LANES = 8;

template <typename T>
inline T multiply_add(T a, T b, T c) {
#if defined(__FMA__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// Runs each task once, on at most `threads` threads that end with the call: OpenMP would keep its threads and hang in a
// process forked later. A thread takes several consecutive tasks, because neighbours share cache lines.
template <typename Task>
void run(int64_t tasks, int threads, const Task& task) {
  const int64_t some = std::max<int64_t>(tasks / (4 * std::max(threads, 1)), 1);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t first = next.fetch_add(some); first < tasks; first = next.fetch_add(some))
      for (int64_t index = first; index < std::min(first + some, tasks); ++index) task(index);
  };
  std::vector<std::thread> others;
  const int64_t wanted = std::min<int64_t>(threads, tasks) - 1;
  others.reserve(std::max<int64_t>(wanted, 0));
  try {
    for (int64_t i = 0; i < wanted; ++i) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads available: those already started do the work
  }
  work();
  for (std::thread& other : others) other.join();
}

// The four pixels around a point, in row-major order, and their bilinear weights.
template <typename T>
struct Corners {
  int64_t pixel[4];  // -1: outside the map
  T part[4];
  T right, below;  // distance to the left and upper pixels
};

// False: the point samples no pixel. Same sequence of operations as grid_sample, so both round identically.
template <typename T>
inline bool locate(const T* place, int64_t height, int64_t width, Corners<T>& corners) {
  const T x = ((2 * place[0] - 1) + 1) * (T(width) / 2) - T(0.5);
  const T y = ((2 * place[1] - 1) + 1) * (T(height) / 2) - T(0.5);
  if (!(x >= -1 && x < T(width) && y >= -1 && y < T(height))) return false;
  const T left = std::floor(x), top = std::floor(y);
  const int64_t column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
  const T right = x - left, below = y - top;
  corners.right = right;
  corners.below = below;
  corners.part[0] = (1 - below) * (1 - right);
  corners.part[1] = (1 - below) * right;
  corners.part[2] = below * (1 - right);
  corners.part[3] = below * right;
  const bool has_left = column >= 0, has_right = column + 1 < width, has_top = row >= 0, has_bottom = row + 1 < height;
  const int64_t first = row * width + column;
  corners.pixel[0] = has_top && has_left ? first : -1;
  corners.pixel[1] = has_top && has_right ? first + 1 : -1;
  corners.pixel[2] = has_bottom && has_left ? first + width : -1;
  corners.pixel[3] = has_bottom && has_right ? first + width + 1 : -1;
  return true;
}

// DIM 0: the dimension is known only at run time.
template <typename T, int DIM>
void forward(const T* value, const int64_t* maps, const T* locations, const T* weights, T* out, const Sizes& s, int threads) {
  const int64_t dim = DIM ? DIM : s.dim, stride = s.heads * dim, samples = s.levels * s.points;
  const std::vector<T> nothing(dim, T(0));
  run(s.batch * s.queries, threads, [&](int64_t query) {
    const T* image = value + query / s.queries * s.tokens * stride;
    for (int64_t head = 0; head < s.heads; ++head) {
      const int64_t row = query * s.heads + head;
      const T *place = locations + row * samples * 2, *mass = weights + row * samples;
      T* target = out + row * dim;
      T registers[DIM ? DIM : 1];
      T* sum = DIM ? registers : target;
      for (int64_t d = 0; d < dim; ++d) sum[d] = 0;
      T outside = 0;
      const T* level = image + head * dim;
      for (int64_t l = 0; l < s.levels; ++l) {
        const int64_t height = maps[2 * l], width = maps[2 * l + 1];
        for (int64_t p = 0; p < s.points; ++p, place += 2, ++mass) {
          Corners<T> corners;
          if (!locate(place, height, width, corners)) {
            outside += 0 * *mass + 0 * place[0] + 0 * place[1];  // NaN unless all are finite
            continue;
          }
          const T* pixel[4];
          T part[4];
          for (int c = 0; c < 4; ++c) {
            pixel[c] = corners.pixel[c] < 0 ? nothing.data() : level + corners.pixel[c] * stride;
            part[c] = corners.part[c] * *mass;
          }
          for (int64_t d = 0; d < dim; ++d) {
            const T upper = multiply_add(part[1], pixel[1][d], multiply_add(part[0], pixel[0][d], sum[d]));
            sum[d] = multiply_add(part[3], pixel[3][d], multiply_add(part[2], pixel[2][d], upper));
          }
        }
        level += height * width * stride;
      }
      for (int64_t d = 0; d < dim; ++d) target[d] = sum[d] + outside;
    }
  });
}

// In LANES partial sums: a fixed summation order that maps to vector registers.
template <typename T>
inline T dot(const T* a, const T* b, int64_t dim) {
  using Lanes __attribute__((vector_size(LANES * sizeof(T)))) = T;
  Lanes partial = {}, left, right;
  const int64_t whole = dim / LANES * LANES;
  for (int64_t d = 0; d < whole; d += LANES) {
    std::memcpy(&left, a + d, sizeof left);
    std::memcpy(&right, b + d, sizeof right);
    partial += left * right;
  }
  T total = ((partial[0] + partial[4]) + (partial[2] + partial[6])) + ((partial[1] + partial[5]) + (partial[3] + partial[7]));
  for (int64_t d = whole; d < dim; ++d) total = multiply_add(a[d], b[d], total);
  return total;
}

// grad_value must be zero-initialised. A task is one head of one level of one image: no two tasks write to the same address.
template <typename T, int DIM>
void backward(const T* grad_out, const T* value, const int64_t* maps, const T* locations, const T* weights, T* grad_value,
              T* grad_locations, T* grad_weights, const Sizes& s, int threads) {
  const int64_t dim = DIM ? DIM : s.dim, stride = s.heads * dim, samples = s.levels * s.points;
  std::vector<int64_t> starts(s.levels, 0);
  for (int64_t l = 1; l < s.levels; ++l) starts[l] = starts[l - 1] + maps[2 * l - 2] * maps[2 * l - 1];
  const std::vector<T> nothing(dim, T(0));
  run(s.batch * s.heads * s.levels, threads, [&](int64_t task) {
    const int64_t l = task % s.levels, head = task / s.levels % s.heads, image = task / s.levels / s.heads;
    const int64_t height = maps[2 * l], width = maps[2 * l + 1];
    const int64_t first = ((image * s.tokens + starts[l]) * s.heads + head) * dim;
    std::vector<T> lost(dim, T(0));
    for (int64_t q = 0; q < s.queries; ++q) {
      const int64_t row = (image * s.queries + q) * s.heads + head, sample = row * samples + l * s.points;
      const T* slope = grad_out + row * dim;
      for (int64_t p = 0; p < s.points; ++p) {
        const T *place = locations + (sample + p) * 2, mass = weights[sample + p];
        T *grad_place = grad_locations + (sample + p) * 2, *grad_mass = grad_weights + sample + p;
        Corners<T> corners;
        if (!locate(place, height, width, corners)) {
          T zero = 0 * place[0] + 0 * place[1];  // NaN unless all are finite
          for (int64_t d = 0; d < dim; ++d) zero += 0 * slope[d];
          *grad_mass = zero;
          grad_place[0] = grad_place[1] = zero + 0 * mass;
          continue;
        }
        T dots[4];
        for (int c = 0; c < 4; ++c)
          dots[c] = dot(slope, corners.pixel[c] < 0 ? nothing.data() : value + first + corners.pixel[c] * stride, dim);
        for (int c = 0; c < 4; ++c) {
          const int64_t pixel = corners.pixel[c];
          T* __restrict target = pixel < 0 ? lost.data() : grad_value + first + pixel * stride;
          const T part = corners.part[c] * mass;
          for (int64_t d = 0; d < dim; ++d) target[d] = multiply_add(part, slope[d], target[d]);
        }
        const T right = corners.right, below = corners.below;
        *grad_mass = corners.part[0] * dots[0] + corners.part[1] * dots[1] + corners.part[2] * dots[2] + corners.part[3] * dots[3];
        grad_place[0] = mass * T(width) * ((1 - below) * (dots[1] - dots[0]) + below * (dots[3] - dots[2]));
        grad_place[1] = mass * T(height) * ((1 - right) * (dots[2] - dots[0]) + right * (dots[3] - dots[1]));
      }
    }
  });
}

}  // namespace

// The usual dimension gets loops of fixed length.
#define FX_DEFORMABLE(T, NAME)                                                                                             \
  extern "C" void fx_deformable_forward_##NAME(const T* value, const int64_t* maps, const T* locations, const T* weights,  \
                                               T* out, const Sizes* s, int threads) {                                      \
    (s->dim == 32 ? forward<T, 32> : forward<T, 0>)(value, maps, locations, weights, out, *s, threads);                    \
  }                                                                                                                        \
  extern "C" void fx_deformable_backward_##NAME(const T* grad_out, const T* value, const int64_t* maps,                    \
                                                const T* locations, const T* weights, T* grad_value, T* grad_locations,    \
                                                T* grad_weights, const Sizes* s, int threads) {                            \
    (s->dim == 32 ? backward<T, 32> : backward<T, 0>)(grad_out, value, maps, locations, weights, grad_value,               \
                                                      grad_locations, grad_weights, *s, threads);                          \
  }

FX_DEFORMABLE(float, float32)
FX_DEFORMABLE(double, float64)
