// Gradients of tiles: a·exp(x - lse) - k·v - b·1{c = y}, with a value of a, k and b per row.
#ifndef MS_CE_GRADIENT_H
#define MS_CE_GRADIENT_H

#include "ms_ce_short.h"

namespace ms_ce {

template <typename T>
class Gradient {
public:
    __aicore__ inline void Init(AscendC::TPipe& pipe, const MsCeTiling& tiling, GM_ADDR output) {
        tiling_ = tiling;
        output_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(output));
        const int32_t padded = static_cast<int32_t>(RoundUp(tiling.groupRows, FLOATS_PER_BLOCK));
        const int32_t bytes = padded * static_cast<int32_t>(sizeof(float));
        pipe.InitBuffer(rowBuffer_, 4 * bytes);
        pipe.InitBuffer(blockBuffer_, 3 * bytes * FLOATS_PER_BLOCK);
        scale_ = rowBuffer_.template Get<float>();
        smooth_ = scale_[padded];
        negated_ = scale_[2 * padded];
        amount_ = scale_[3 * padded];
        lseBlocks_ = blockBuffer_.template Get<float>();
        scaleBlocks_ = lseBlocks_[padded * FLOATS_PER_BLOCK];
        smoothBlocks_ = lseBlocks_[2 * padded * FLOATS_PER_BLOCK];
        pipe.InitBuffer(outputQueue_, tiling.outputTiles,
                        tiling.tileRows * tiling.tilePitch * static_cast<int32_t>(sizeof(T)));
        if (tiling.keepsRow) {
            pipe.InitBuffer(factorBuffer_, (RING + 2 * FLOATS_PER_BLOCK) * static_cast<int32_t>(sizeof(float)));
            factors_ = factorBuffer_.template Get<float>();
        }
        if (tiling.dot == MS_CE_DOT_WEIGHTED && tiling.path == MS_CE_SHORT) {
            pipe.InitBuffer(laneBuffer_, padded * static_cast<int32_t>(kLaneBytes));
        }
        AscendC::Duplicate(scale_, 0.0f, padded * 4);
    }

    // Coefficients of a group's rows from the upstream gradient (already divided by the mean's denominator), the
    // log-sum-exp and the mass: Σ w·q' of probabilities, Σ v of smoothed class targets. All are padded to 8 rows.
    __aicore__ inline void SetRows(int32_t rows, const Rows<T>& state, const Floats& upstream, const Floats& lse,
                                   const Floats& mass) {
        const MsCeProblem& p = tiling_.problem;
        SetScales(rows, state, upstream, mass);
        if (p.kind == MS_CE_NLL_BACKWARD) {
            return;
        }
        if (p.zLoss != 0.0f) {
            AscendC::Mul(negated_, lse, upstream, rows);
            AscendC::Axpy(scale_, negated_, 2.0f * p.zLoss, rows);
        }
        AscendC::Mul(scale_, scale_, state.valid, rows);
        BroadcastRows(lseBlocks_, lse, rows);
        BroadcastRows(scaleBlocks_, scale_, rows);
        BroadcastRows(smoothBlocks_, smooth_, rows);
    }

    // The same for rows that stay; what depends on their logits comes with SetRow.
    __aicore__ inline void SetKeptRows(int32_t rows, const Rows<T>& state, const Floats& upstream, const Floats& mass) {
        SetScales(rows, state, upstream, mass);
        BroadcastRows(scaleBlocks_, scale_, rows);
        Synchronise<HardEvent::V_S>();
    }

    // Takes up a row that counts and has become exp(x - m): m and Σ exp(x - m) eight times each, and the upstream
    // gradient.
    __aicore__ inline void SetRow(int32_t row, const Rows<T>& state, const Floats& maximum, const Floats& total,
                                  float upstream) {
        const MsCeProblem& p = tiling_.problem;
        const Floats factor = factors_[RING];
        Floats scale = scaleBlocks_[row * FLOATS_PER_BLOCK];
        if (p.zLoss != 0.0f) {
            const Floats lse = factors_[RING + FLOATS_PER_BLOCK];
            AscendC::Ln(lse, total, FLOATS_PER_BLOCK);
            AscendC::Add(lse, lse, maximum, FLOATS_PER_BLOCK);
            AscendC::Axpy(scale, lse, 2.0f * p.zLoss * upstream, FLOATS_PER_BLOCK);
        }
        AscendC::Div(factor, scale, total, FLOATS_PER_BLOCK);
        BroadcastRows(factors_, factor, 1);
        BroadcastRows(factors_[LANES], factor, 1);
        column_ = state.LocalClass(row);
        classAmount_ = amount_.GetValue(row);
        smoothAmount_ =
            tiling_.dot == MS_CE_DOT_NONE ? 0.0f : upstream * (p.labelSmoothing / static_cast<float>(p.totalClasses));
    }

    // A tile of that row becomes its gradient and is written, in two steps with room for other work between them.
    __aicore__ inline void ScaleTile(const Floats& exponentials, const Tile& tile) {
        scaled_ = outputQueue_.template AllocTensor<T>();
        TileValueOperation<MulOperation>(Scaled(exponentials), exponentials, factors_, tile.cols);
    }
    __aicore__ inline void SendTile(int64_t row, const Floats& exponentials, const Tile& tile) {
        const Floats g = Scaled(exponentials);
        if (smoothAmount_ != 0.0f) {
            AscendC::Adds(g, g, -smoothAmount_, tile.cols);
        }
        if (Holds(tile.cols, column_ - tile.begin)) {
            SubtractAt(g, column_ - tile.begin, classAmount_);
        }
        Write(row, tile, g, scaled_, tile.cols);
    }

    // Gradient of a tile of long rows, written out. For NLLLoss there are no logits: x is ignored and only the class of each
    // row is not zero.
    __aicore__ inline void LongTile(Tiles<T>& tiles, const Rows<T>& state, int64_t groupRow, const Tile& tile,
                                    const Floats& x) {
        const int32_t pitch = tiles.Pitch(tile.cols);
        LocalTensor<T> out = outputQueue_.template AllocTensor<T>();
        const Floats g = InFloat(tiles, out);
        if (tiling_.problem.kind == MS_CE_NLL_BACKWARD) {
            AscendC::Duplicate(g, 0.0f, tile.rows * pitch);
        } else {
            const bool isProbability = tiling_.dot == MS_CE_DOT_PROB;
            Floats v = isProbability ? tiles.WeightedProbabilities(tile) : x;
            if (tiling_.dot == MS_CE_DOT_WEIGHTED) {
                v = tiles.Weights(tile.begin);
            }
            for (int32_t r = 0; r < tile.rows; ++r) {
                Row(tiles, tile, r, x[r * pitch], g[r * pitch], isProbability ? v[r * pitch] : v);
            }
            if (tiling_.dot == MS_CE_DOT_WEIGHTED) {
                tiles.DropWeights(v);
            }
        }
        SubtractClasses(state, tile.row, tile.rows, tile.begin, tile.cols, g, pitch);
        Write(groupRow + tile.row, tile, g, out, tile.rows * pitch);
    }

    // The same for a tile of short rows. `x` and `g` have the tile's pitch.
    __aicore__ inline void ShortTile(Tiles<T>& tiles, ShortRows<T>& shape, const Rows<T>& state, int64_t row,
                                     int32_t rows, const Floats& x) {
        const int32_t pitch = tiling_.tilePitch;
        const int32_t stride = pitch / FLOATS_PER_BLOCK;
        const int32_t cols = tiling_.tileCols;
        LocalTensor<T> out = outputQueue_.template AllocTensor<T>();
        const Floats g = InFloat(tiles, out);
        if (tiling_.problem.kind == MS_CE_NLL_BACKWARD) {
            for (int32_t r = 0; r < rows; ++r) {
                AscendC::Duplicate(g[r * pitch], state.Counts(r) || state.IsIgnored(r) ? 0.0f : NotANumber(), pitch);
            }
        } else {
            const Floats v = tiling_.dot == MS_CE_DOT_PROB ? tiles.WeightedProbabilities(Tile{0, rows, 0, 0, cols}) : x;
            // One instruction after another on all columns: nothing waits for the one before.
            for (int32_t at = 0; at < cols; at += LANES) {
                RowsOperation<SubOperation>(g[at], x[at], lseBlocks_, shape.Mask(at / LANES), rows, stride, stride, 1,
                                            0);
            }
            for (int32_t at = 0; at < cols; at += LANES) {
                RowsExp(g[at], shape.Mask(at / LANES), rows, stride);
            }
            for (int32_t at = 0; at < cols; at += LANES) {
                RowsOperation<MulOperation>(g[at], g[at], scaleBlocks_, shape.Mask(at / LANES), rows, stride, stride, 1,
                                            0);
            }
            for (int32_t at = 0; at < cols; at += LANES) {
                ShortSmoothing(tiles, v, at, shape.Mask(at / LANES), rows, stride, g[at]);
            }
        }
        if (shape.usesOneHot) {
            // The log-sum-exp of the rows is not needed any more.
            BroadcastRows(lseBlocks_, amount_, rows);
            if (tiling_.problem.kind != MS_CE_FORWARD_GRAD) {
                shape.MarkClasses(state, rows);  // there the loss has done so
            }
            shape.SubtractAtClasses(g, lseBlocks_, rows);
        } else {
            SubtractClasses(state, 0, rows, 0, cols, g, pitch);
        }
        const Tile whole{0, rows, 0, 0, cols};
        Write(row, whole, g, out, rows * pitch);
    }

    // Room for a tile in fp32 that the statistics may destroy while the logits stay: the cast copy, or the gradient's tile
    // as long as no gradient is in it.
    __aicore__ inline Floats Borrow(Tiles<T>& tiles) {
        if constexpr (Tiles<T>::kCasts) {
            return tiles.work;
        } else {
            borrowed_ = outputQueue_.template AllocTensor<T>();
            return borrowed_;
        }
    }
    __aicore__ inline void GiveBack() {
        if constexpr (!Tiles<T>::kCasts) {
            outputQueue_.FreeTensor(borrowed_);
        }
    }

    // Rows that do not count: zeros, or NaN where the target was bad. Their logits are not read.
    __aicore__ inline void FillRow(const Rows<T>& state, int64_t groupRow, const Tile& tile) {
        LocalTensor<T> out = outputQueue_.template AllocTensor<T>();
        const LocalTensor<int32_t> words = out.template ReinterpretCast<int32_t>();
        const int32_t count =
            static_cast<int32_t>(CeilDiv(tile.cols * static_cast<int32_t>(sizeof(T)), sizeof(int32_t)));
        AscendC::Duplicate(words, state.IsIgnored(tile.row) ? 0 : NotANumberWord(), count);
        outputQueue_.EnQue(out);
        CopyRows(groupRow + tile.row, tile);
    }

private:
    // Coefficients that do not depend on the logits.
    __aicore__ inline void SetScales(int32_t rows, const Rows<T>& state, const Floats& upstream, const Floats& mass) {
        const MsCeProblem& p = tiling_.problem;
        // What the gradient of the row's class has less. The scalar pipe may still read that of other rows.
        Synchronise<HardEvent::S_V>();
        AscendC::Mul(amount_, upstream, state.classWeight, rows);
        if (p.kind == MS_CE_NLL_BACKWARD) {
            return;
        }
        AscendC::Muls(amount_, amount_, 1.0f - p.labelSmoothing, rows);
        const float smooth = p.labelSmoothing / static_cast<float>(p.totalClasses);
        if (HasProbabilities(p.kind)) {
            AscendC::Mul(scale_, mass, upstream, rows);
            AscendC::Mul(smooth_, upstream, state.valid, rows);
        } else {
            AscendC::Muls(scale_, state.classWeight, 1.0f - p.labelSmoothing, rows);
            if (tiling_.dot != MS_CE_DOT_NONE) {
                AscendC::Axpy(scale_, mass, smooth, rows);
            }
            AscendC::Mul(scale_, scale_, upstream, rows);
            AscendC::Muls(smooth_, upstream, smooth, rows);
            AscendC::Mul(smooth_, smooth_, state.valid, rows);
        }
    }

    // Where a kept tile is computed: in its place, or in the output tile.
    __aicore__ inline Floats Scaled(const Floats& exponentials) const {
        if constexpr (Tiles<T>::kCasts) {
            return exponentials;
        } else {
            return scaled_;
        }
    }

    // Where the gradient is computed in fp32: the output tile itself, or the tile of casts.
    __aicore__ inline Floats InFloat(Tiles<T>& tiles, const LocalTensor<T>& out) {
        if constexpr (Tiles<T>::kCasts) {
            return tiles.work;
        } else {
            return out;
        }
    }

    __aicore__ inline void Row(Tiles<T>& tiles, const Tile& tile, int32_t r, const Floats& x, const Floats& g,
                               const Floats& v) {
        const int32_t at = (tile.row + r) * FLOATS_PER_BLOCK;
        TileOperation<SubOperation>(g, x, lseBlocks_[at], tile.cols, 0);
        AscendC::Exp(g, g, tile.cols);
        TileOperation<MulOperation>(g, g, scaleBlocks_[at], tile.cols, 0);
        if (tiling_.dot == MS_CE_DOT_UNIFORM) {
            TileOperation<SubOperation>(g, g, smoothBlocks_[at], tile.cols, 0);
        } else if (tiling_.dot != MS_CE_DOT_NONE) {
            const Floats product = tiling_.dot == MS_CE_DOT_PROB ? v : tiles.product;
            TileOperation<MulOperation>(product, v, smoothBlocks_[at], tile.cols, 0);
            AscendC::Sub(g, g, product, tile.cols);
        }
    }

    __aicore__ inline void ShortSmoothing(Tiles<T>& tiles, const Floats& v, int32_t at, int32_t mask, int32_t rows,
                                          int32_t stride, const Floats& g) {
        if (tiling_.dot == MS_CE_DOT_UNIFORM) {
            RowsOperation<SubOperation>(g, g, smoothBlocks_, mask, rows, stride, stride, 1, 0);
        } else if (tiling_.dot == MS_CE_DOT_WEIGHTED) {
            const Floats product = laneBuffer_.template Get<float>();
            const Floats weights = tiles.KeptWeights();
            RowsOperation<MulOperation>(product, weights[at], smoothBlocks_, mask, rows, BLOCKS_PER_REPEAT, 0, 1, 0);
            RowsOperation<SubOperation>(g, g, product, mask, rows, stride, stride, BLOCKS_PER_REPEAT, 1);
        } else if (tiling_.dot == MS_CE_DOT_PROB) {
            RowsOperation<MulOperation>(v[at], v[at], smoothBlocks_, mask, rows, stride, stride, 1, 0);
            RowsOperation<SubOperation>(g, g, v[at], mask, rows, stride, stride, stride, 1);
        }
    }

    // g[y] -= upstream·(1-ε)·w[y], one lane of one block for each row, on the vector pipe.
    __aicore__ inline void SubtractClasses(const Rows<T>& state, int32_t row, int32_t rows, int64_t begin, int32_t cols,
                                           const Floats& g, int32_t pitch) {
        if (HasProbabilities(tiling_.problem.kind)) {
            return;
        }
        Synchronise<HardEvent::V_S>();
        for (int32_t r = 0; r < rows; ++r) {
            if (!state.Owns(row + r)) {
                continue;
            }
            const int64_t column = state.LocalClass(row + r) - begin;
            if (Holds(cols, column)) {
                SubtractAt(g[r * pitch], column, amount_.GetValue(row + r));
            }
        }
    }

    __aicore__ inline bool Holds(int32_t cols, int64_t column) const { return column >= 0 && column < cols; }

    // g[column] -= amount.
    __aicore__ inline void SubtractAt(const Floats& g, int64_t column, float amount) {
        const int32_t block = static_cast<int32_t>(column) / FLOATS_PER_BLOCK * FLOATS_PER_BLOCK;
        uint64_t mask[2] = {1ull << (column - block), 0};
        AscendC::Adds(g[block], g[block], -amount, mask, 1, AscendC::UnaryRepeatParams(1, 1, 8, 8));
    }

    __aicore__ inline void Write(int64_t row, const Tile& tile, const Floats& g, LocalTensor<T>& out,
                                 int32_t elements) {
        if constexpr (Tiles<T>::kCasts) {
            AscendC::Cast(out, g, AscendC::RoundMode::CAST_RINT, elements);
        }
        outputQueue_.EnQue(out);
        CopyRows(row, tile);
    }

    __aicore__ inline void CopyRows(int64_t row, const Tile& tile) {
        LocalTensor<T> out = outputQueue_.template DeQue<T>();
        const int64_t cols = tiling_.problem.cols;
        CopyOut(output_[row * cols + tile.begin], out, tile.rows, tile.cols, cols);
        outputQueue_.FreeTensor(out);
    }

    __aicore__ inline int32_t NotANumberWord() const {
        if constexpr (std::is_same<T, float>::value) {
            return 0x7fc00000;
        } else if constexpr (std::is_same<T, half>::value) {
            return 0x7e007e00;
        } else {
            return 0x7fc07fc0;
        }
    }

    MsCeTiling tiling_;
    GlobalTensor<T> output_;
    LocalTensor<T> borrowed_, scaled_;
    int64_t column_ = 0;  // of the row that SetRow took up: its class, and what is subtracted there and everywhere
    float classAmount_ = 0.0f;
    float smoothAmount_ = 0.0f;
    Floats factors_;  // its factor RING times, and room for two blocks
    Floats scale_, smooth_, negated_, amount_, lseBlocks_, scaleBlocks_, smoothBlocks_;
    AscendC::TQue<AscendC::TPosition::VECOUT, 1> outputQueue_;
    AscendC::TBuf<AscendC::TPosition::VECCALC> rowBuffer_, blockBuffer_, laneBuffer_, factorBuffer_;
};

}  // namespace ms_ce

#endif
