// Resampling with an FIR filter, on both axes:  out[n] = sum_k h[k] x_up[n down + k - before]  (see upfirdn2d.py).
//
// x_up is x with up - 1 zeros after every pixel, and zero outside. All kernels are bound by memory bandwidth: each access of a warp
// covers consecutive bytes, and pixels that neighbouring threads share come from the cache. The file includes no header, so NVRTC can
// compile it with PyTorch's own packages alone. It uses no shared memory or barrier, so the tests can compile it for the CPU with a
// C++ compiler.

struct Geometry {
    int channels, height, width, out_height, out_width;
    int kernel_height, kernel_width, up, down, before_y, before_x;
    int flip, channels_last;
    int strips;  // number of strips of rows per plane; specialised kernels only
    long long count;  // number of threads that compute outputs
    long long in_strides[4], out_strides[4];  // of batch, channel, row, column; general kernel only
};

// Numbers: double accumulates in double, everything else in float -------------------------------------------------------------------

struct half { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

template <typename T> struct Accumulator { typedef float type; };
template <> struct Accumulator<double> { typedef double type; };
template <typename T> using Acc = typename Accumulator<T>::type;

template <typename To, typename From> __device__ inline To reinterpret(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are neither added nor lost");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bfloat16 x) { return reinterpret<float>((unsigned)x.bits << 16); }

__device__ inline void narrow(double x, double& y) { y = x; }
__device__ inline void narrow(float x, float& y) { y = x; }
__device__ inline void narrow(float x, bfloat16& y) {
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else  // round to nearest, ties to even; a NaN becomes 0x7fff, because rounding its payload could give infinity
    const unsigned bits = reinterpret<unsigned>(x);
    y.bits = x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
#endif
}

#ifdef __CUDA_ARCH__
__device__ inline float widen(half x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ inline void narrow(float x, half& y) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
#else
__device__ inline float widen(half x) { return reinterpret<_Float16>(x.bits); }
__device__ inline void narrow(float x, half& y) { y.bits = reinterpret<unsigned short>((_Float16)x); }
#endif

// Any filter, factors, border and strides: one thread per output ----------------------------------------------------------------------

// U is the type of thread numbers: 32-bit divisions are several times faster than 64-bit divisions.
template <typename T, typename U> __device__ inline void any(const T* x, const Acc<T>* taps, T* out, const Geometry& g) {
    U index = (U)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= g.count) return;
    U c = 0;  // the axis that is contiguous in memory varies fastest
    if (g.channels_last) c = index % g.channels, index /= g.channels;
    const int column = index % g.out_width; index /= g.out_width;
    const int row = index % g.out_height; index /= g.out_height;
    if (!g.channels_last) c = index % g.channels, index /= g.channels;
    const T* plane = x + index * g.in_strides[0] + c * g.in_strides[1];

    // Beginning with tap (first_y, first_x), every up-th tap meets a pixel; the other taps meet the zeros in between.
    const int top = row * g.down - g.before_y, left = column * g.down - g.before_x;
    const int first_y = (g.up - top % g.up) % g.up, first_x = (g.up - left % g.up) % g.up;
    Acc<T> sum = 0;
    for (int ky = first_y; ky < g.kernel_height; ky += g.up) {
        const int i = (top + ky) / g.up;
        if (i < 0 || i >= g.height) continue;
        for (int kx = first_x; kx < g.kernel_width; kx += g.up) {
            const int j = (left + kx) / g.up;
            if (j < 0 || j >= g.width) continue;
            const int tap = ky * g.kernel_width + kx, last = g.kernel_height * g.kernel_width - 1;
            sum += taps[g.flip ? last - tap : tap] * widen(plane[i * g.in_strides[2] + j * g.in_strides[3]]);
        }
    }
    narrow(sum, out[index * g.out_strides[0] + c * g.out_strides[1] + row * g.out_strides[2] + column * g.out_strides[3]]);
}

// Twice or half the size with 4x4 taps ------------------------------------------------------------------------------------------------
//
// A thread computes ROWS rows of P columns of the smaller image's grid for L channels. These are consecutive pixels of one plane if
// L = 1, or 16 bytes of channels of one pixel otherwise (channels last). In both cases the thread accesses the larger image 16 bytes at
// a time. Pixels are read once per row, into a window that extends one pixel beyond the columns on both sides.

constexpr int ROWS = 4;

template <typename T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector { T at[N]; };

template <typename T, int L> struct Tile {
    static constexpr int V = 16 / sizeof(T), P = L == 1 ? V / 2 : 1;
    int row, column, pixel;  // first row and column of the tile; number of elements from a pixel to the next
    long long plane, channel;

    __device__ Tile(const Geometry& g, int columns) {
        unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
        const unsigned groups = L == 1 ? 1 : g.channels / L;
        pixel = L == 1 ? 1 : g.channels;
        channel = index % groups * L, index /= groups;
        column = index % (columns / P) * P, index /= columns / P;
        row = index % g.strips * ROWS;
        plane = index / g.strips;
    }
};

template <typename A> __device__ inline void read_taps(A (&h)[4][4], const A* taps, int flip) {
#pragma unroll
    for (int k = 0; k < 16; k++) h[k / 4][k % 4] = taps[flip ? 15 - k : k];
}

// Read columns first .. first + N - 1 of row i, with zeros outside of the image. For L = 1, all columns except the first and the last
// are aligned and inside the image.
template <typename T, int N, int L>
__device__ inline void read(Acc<T> (&window)[N][L], const T* image, int i, int first, int height, int width, int pixel) {
    const T* row = image + ((long long)i * width + first) * pixel;
    const bool inside = i >= 0 && i < height;
    if constexpr (L == 1) {
        Vector<T, N - 2> inner = {};
        T left = {}, right = {};
        if (inside) inner = *(const Vector<T, N - 2>*)(row + 1);
        if (inside && first >= 0) left = row[0];
        if (inside && first + N <= width) right = row[N - 1];
        window[0][0] = widen(left), window[N - 1][0] = widen(right);
#pragma unroll
        for (int q = 0; q < N - 2; q++) window[q + 1][0] = widen(inner.at[q]);
    } else {
#pragma unroll
        for (int q = 0; q < N; q++) {
            Vector<T, L> channels = {};
            if (inside && first + q >= 0 && first + q < width) channels = *(const Vector<T, L>*)(row + q * pixel);
#pragma unroll
            for (int l = 0; l < L; l++) window[q][l] = widen(channels.at[l]);
        }
    }
}

// Write N pixels of L channels, beginning at `out`: in one piece if L = 1, otherwise one pixel at a time.
template <typename T, int N, int L> __device__ inline void write(T* out, const Acc<T> (&value)[N][L], int pixel) {
    constexpr int pieces = L == 1 ? 1 : N, length = L == 1 ? N : L;
#pragma unroll
    for (int piece = 0; piece < pieces; piece++) {
        Vector<T, length> vector;
#pragma unroll
        for (int l = 0; l < length; l++) narrow(L == 1 ? value[l % N][0] : value[piece][l % L], vector.at[l]);
        *(Vector<T, length>*)(out + piece * pixel) = vector;
    }
}

// up = 2, before = 2: an even n = 2 i meets h[0] x[i - 1] + h[2] x[i], an odd n = 2 i + 1 meets h[1] x[i] + h[3] x[i + 1].
template <typename T, int L> __device__ inline void up2(const T* x, const Acc<T>* taps, T* out, const Geometry& g) {
    if (blockIdx.x * blockDim.x + threadIdx.x >= g.count) return;
    typedef Tile<T, L> Tile;
    const Tile tile(g, g.width);
    constexpr int P = Tile::P;
    const T* image = x + tile.plane * g.height * g.width * tile.pixel + tile.channel;
    T* corner = out + (tile.plane * 4 * g.height * g.width + 2 * tile.column) * tile.pixel + tile.channel;
    Acc<T> h[4][4], window[3][P + 2][L];  // the window holds three rows, which are replaced in turn
    read_taps(h, taps, g.flip);
    read(window[0], image, tile.row - 1, tile.column - 1, g.height, g.width, tile.pixel);
    read(window[1], image, tile.row, tile.column - 1, g.height, g.width, tile.pixel);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int i = tile.row + r;
        read(window[(r + 2) % 3], image, i + 1, tile.column - 1, g.height, g.width, tile.pixel);
#pragma unroll
        for (int s = 0; s < 2; s++) {
            const auto &above = window[(r + s) % 3], &below = window[(r + s + 1) % 3];
            Acc<T> value[2 * P][L];
#pragma unroll
            for (int q = 0; q < 2 * P; q++) {
                const int t = q % 2, j = q / 2 + t;
#pragma unroll
                for (int l = 0; l < L; l++)
                    value[q][l] = h[s][t] * above[j][l] + h[s][t + 2] * above[j + 1][l]
                                + h[s + 2][t] * below[j][l] + h[s + 2][t + 2] * below[j + 1][l];
            }
            if (i >= g.height) return;
            write(corner + (long long)(2 * i + s) * 2 * g.width * tile.pixel, value, tile.pixel);
        }
    }
}

// down = 2, before = 1: output n meets h[k] x[2 n + k - 1].
template <typename T, int L> __device__ inline void down2(const T* x, const Acc<T>* taps, T* out, const Geometry& g) {
    if (blockIdx.x * blockDim.x + threadIdx.x >= g.count) return;
    typedef Tile<T, L> Tile;
    const Tile tile(g, g.out_width);
    constexpr int P = Tile::P;
    const T* image = x + tile.plane * g.height * g.width * tile.pixel + tile.channel;
    T* corner = out + (tile.plane * g.out_height * g.out_width + tile.column) * tile.pixel + tile.channel;
    Acc<T> h[4][4], value[ROWS][P][L] = {};
    read_taps(h, taps, g.flip);
#pragma unroll
    for (int t = 0; t < 2 * ROWS + 2; t++) {  // row t of x meets tap k of the output rows r with 2 r + k = t
        Acc<T> window[2 * P + 2][L];
        read(window, image, 2 * tile.row - 1 + t, 2 * tile.column - 1, g.height, g.width, tile.pixel);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int k = t - 2 * r;
            if (k < 0 || k > 3) continue;
#pragma unroll
            for (int p = 0; p < P; p++)
#pragma unroll
                for (int q = 0; q < 4; q++)
#pragma unroll
                    for (int l = 0; l < L; l++) value[r][p][l] += h[k][q] * window[2 * p + q][l];
            if (k < 3) continue;
            if (tile.row + r >= g.out_height) return;
            write(corner + (long long)(tile.row + r) * g.out_width * tile.pixel, value[r], tile.pixel);
        }
    }
}

// Entry points for the type SCALAR, a macro: double, float, half or bfloat16 -----------------------------------------------------------

// The bounds are the threads per block and, for the kernel that would otherwise use too many registers, the minimum number of blocks
// per multiprocessor.

#define ENTRY(name, bounds, ...) \
    extern "C" __global__ void __launch_bounds__ bounds name(const SCALAR* __restrict__ x, const Acc<SCALAR>* __restrict__ taps, \
                                                             SCALAR* __restrict__ out, const Geometry g) { __VA_ARGS__(x, taps, out, g); }
ENTRY(general, (256), any<SCALAR, unsigned>)
ENTRY(general_long, (256), any<SCALAR, unsigned long long>)
ENTRY(up2_planes, (256), up2<SCALAR, 1>)
ENTRY(up2_pixels, (256, 2), up2<SCALAR, 16 / sizeof(SCALAR)>)
ENTRY(down2_planes, (256), down2<SCALAR, 1>)
ENTRY(down2_pixels, (256), down2<SCALAR, 16 / sizeof(SCALAR)>)
