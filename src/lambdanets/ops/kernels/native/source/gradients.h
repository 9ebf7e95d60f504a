// The gradients of q, v and the table from g, the gradient of the output.
//
// With the map S = q E and its gradient dS = g V^T, tile by tile: dV += S^T g, dq += dS E, dE += dS^T q. Of dS
// the transpose V g^T is computed: its lanes are the rows of a tile, which are whole vectors for any window.
// Strips of queries form groups. Those of a group run one after the other and add to the same partial sums of
// dV and dE, which are added up in the order of the groups at the end. Groups depend on the problem alone, so
// results do not depend on the number of threads.
#pragma once

#include "pass.h"

namespace {

// The part of the map's gradient of one query, and the rows of the table that belong to it.
template <typename T>
struct QueryRows {
    const T* map;      // [columns, rows of the tile], at the first column of the first row and the first head
    Index map_column;  // distance of columns
    Index map_row;     // distance of the first columns of two rows of the context
    const SeenRow* rows;
    Index count, columns;
    Index slab, first;  // elements of a slab of the table, and the first element of a row in it
    const T* table;     // [u z y, x, padded k]
    T* d_table;
    Index padded;
};

// Adds to the gradients of a query's heads and of the table: for each column, dq[h] += dS[h] E and
// dE += sum over h of dS[h] q[h]. Lanes are k.
template <typename T, int HEADS, int VECTORS>
__attribute__((noinline)) void add_query_gradients(const QueryRows<T>& query, const T* q, T* dq) {
    // Two columns at a time: sums of their own keep the multiply-adds independent.
    constexpr int COLUMNS = HEADS * VECTORS * 3 + 3 <= VECTOR_REGISTERS ? 2 : 1;
    const Index padded = query.padded;
    Vector<T> sum[COLUMNS][HEADS][VECTORS] = {}, factor_q[HEADS][VECTORS];
#pragma GCC unroll 16
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
            factor_q[h][j] = load(q + h * padded + j * LANES<T>);
            keep(factor_q[h][j]);
        }
    auto add_column = [&](int set, const T* map, const T* table, T* d_table) __attribute__((always_inline)) {
        Vector<T> e[VECTORS], de[VECTORS];
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
            e[j] = load(table + j * LANES<T>);
            keep(e[j]);
            de[j] = load(d_table + j * LANES<T>);
        }
#pragma GCC unroll 16
        for (int h = 0; h < HEADS; ++h) {
            Vector<T> factor = broadcast(map[h]);
            keep(factor);
#pragma GCC unroll 16
            for (int j = 0; j < VECTORS; ++j) {
                sum[set][h][j] += factor * e[j];
                de[j] += factor * factor_q[h][j];
            }
        }
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) store(d_table + j * LANES<T>, de[j]);
    };
    for (Index row = 0; row < query.count; ++row) {
        const T* map = query.map + row * query.map_row;
        const Index element = query.rows[row].slab * query.slab + query.first;
        const T* table = query.table + element;
        T* d_table = query.d_table + element;
        Index i = 0;
        for (; i + COLUMNS <= query.columns; i += COLUMNS) {
#pragma GCC unroll 2
            for (int set = 0; set < COLUMNS; ++set) {
                add_column(set, map, table, d_table);
                map += query.map_column;
                table += padded;
                d_table += padded;
            }
        }
        if (i < query.columns) add_column(0, map, table, d_table);
    }
#pragma GCC unroll 16
    for (int h = 0; h < HEADS; ++h)
#pragma GCC unroll 16
        for (int j = 0; j < VECTORS; ++j) {
            T* to = dq + h * padded + j * LANES<T>;
            Vector<T> total = load(to);
#pragma GCC unroll 2
            for (int set = 0; set < COLUMNS; ++set) total += sum[set][h][j];
            store(to, total);
        }
}

// Calls `add_query_gradients` for all heads and all of k, in blocks that fit into the registers.
template <typename T>
void add_gradients(QueryRows<T> query, Index heads, const T* q, T* dq) {
    using Add = void (*)(const QueryRows<T>&, const T*, T*);
    constexpr Add ADD[4][2] = {
        {add_query_gradients<T, 1, 1>, add_query_gradients<T, 1, 2>},
        {add_query_gradients<T, 2, 1>, add_query_gradients<T, 2, 2>},
        {add_query_gradients<T, 3, 1>, add_query_gradients<T, 3, 2>},
        {add_query_gradients<T, 4, 1>, add_query_gradients<T, 4, 2>}};
    constexpr Index WIDEST = VECTOR_REGISTERS == 32 ? 2 : 1;
    const T *map = query.map, *table = query.table;
    T* d_table = query.d_table;
    for (Index head = 0; head < heads; head += 4)
        for (Index k = 0; k < query.padded; k += WIDEST * LANES<T>) {
            Index height = least(4, heads - head), width = least(WIDEST, (query.padded - k) / LANES<T>);
            Index first = head * query.padded + k;
            query.map = map + head;
            query.table = table + k;
            query.d_table = d_table + k;
            ADD[height - 1][width - 1](query, q + first, dq + first);
        }
}

template <typename T>
class Gradients : Pass<T> {
    using Base = Pass<T>;
    using Base::call, Base::geometry, Base::strips, Base::workspace;

    static constexpr Index MAX_SPLITS = 32;
    // Groups that a problem should have, operations of a group for each byte of its partial sums, and the most
    // bytes of all partial sums.
    static constexpr Index WANTED_GROUPS = 32, MAX_GROUPS = 64, OPERATIONS_PER_BYTE = 256;
    static constexpr Index PARTIAL_BYTES = 1 << 25;

   public:
    explicit Gradients(const LambdanetsCall& call) : Base(call, tile_size(Geometry(call, LANES<T>))) {
        const Geometry& g = geometry;
        const Index rows = strips.max_queries() * g.heads;
        choose_groups();
        if (needs_map_gradient()) {
            embeddings_ = workspace.reserve(table_size());
            table_sums_ = workspace.reserve(groups_ * table_size());
        }
        if (call.dv.data) value_sums_ = workspace.reserve(g.batch * example_size());
        scratch_ = workspace.reserve(0);
        queries_ = workspace.reserve(rows * g.padded_k) - scratch_;
        // Tiles are transposed in whole vectors of rows, of which the last may read beyond the last row.
        upstream_ = workspace.reserve((rows + LANES<T>) * g.padded_v) - scratch_;
        query_gradients_ = workspace.reserve(rows * g.padded_k) - scratch_;
        content_ = workspace.reserve(g.dim_v * g.padded_k) - scratch_;
        map_ = workspace.reserve(Base::tile_queries * g.heads * MAP_ROW) - scratch_;
        map_gradient_row_ = round_up(Base::tile_queries * g.heads, LANES<T>);
        map_gradient_ = workspace.reserve(CHUNK * map_gradient_row_) - scratch_;
        // One tile for each query of a row, if inputs are not finite.
        transposed_ = workspace.reserve(strips.max_row_queries() * transposed_tile()) - scratch_;
        sum_ = workspace.reserve(g.largest_part() * g.padded_v) - scratch_;
        seen_ = workspace.reserve(g.max_seen_rows() * sizeof(SeenRow) / sizeof(T)) - scratch_;
        scratch_size_ = workspace.reserve(0) - scratch_;
        workspace.reserve((Base::threads() - 1) * scratch_size_);
    }

    int run() {
        if (!workspace.allocate()) return LAMBDANETS_NO_MEMORY;
        const Geometry& g = geometry;
        const Index packed = needs_map_gradient() ? Base::value_parts() : 0;
        parallel(call, Base::threads(), g.slabs() + packed, [&](Index task, Index) {
            if (task < g.slabs())
                Base::pack_slab(task, needs_map_gradient() ? workspace.at(embeddings_) : nullptr);
            else
                Base::pack_values(task - g.slabs());
        });
        parallel(call, Base::threads(), groups_, [&](Index group, Index worker) {
            compute_group(group, workspace.at(scratch_ + worker * scratch_size_));
        });
        const Index table_tasks = call.de.data ? g.slabs() : 0;
        const Index value_tasks = call.dv.data ? Base::value_parts() : 0;
        parallel(call, Base::threads(), table_tasks + value_tasks, [&](Index task, Index worker) {
            if (task < table_tasks)
                write_table_gradient(task);
            else
                write_value_gradient(
                    task - table_tasks, workspace.at(scratch_ + worker * scratch_size_) + sum_);
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The queries of a tile: their heads fill whole vectors, unless that joins too many narrow windows.
    static Index tile_size(const Geometry& g) {
        return most(1, least(32 / g.heads, g.covers_rows() ? 32 : g.x.entries + 1));
    }

    bool needs_map_gradient() const { return call.dq.data || call.de.data; }

    Index table_size() const { return geometry.slabs() * geometry.x.entries * geometry.padded_k; }

    // Chooses the groups: several examples each, or each a part of the strips of one example.
    void choose_groups() {
        const Geometry& g = geometry;
        const double operations = 2 * g.pairs() * g.batch * g.heads * (3 * g.dim_k + 2 * g.dim_v);
        Index bytes = table_size() * sizeof(T);
        const bool split = g.batch < WANTED_GROUPS / 2;
        if (split) bytes += g.packed_keys() * g.padded_v * sizeof(T) / (g.covers_rows() ? 1 : 2);
        const double affordable = operations / OPERATIONS_PER_BYTE;
        const Index most_groups = least(MAX_GROUPS, Index((affordable < PARTIAL_BYTES ? affordable : PARTIAL_BYTES) / bytes));
        groups_ = g.batch;
        splits_ = 1;
        if (split) {
            splits_ = most(1, least(strips.count(), divide_up(least(WANTED_GROUPS, most_groups), g.batch)));
            groups_ = g.batch * splits_;
        } else {
            groups_ = most(1, least(g.batch, most_groups));
        }
        Index start = 0;
        for (Index split = 0; split < splits_; ++split) {
            Range seen{g.keys(), 0};
            for (Index i = first_strip(split); i < first_strip(split + 1); ++i) {
                Range keys = strips.keys_of(strips.at(i));
                seen = {least(seen.first, keys.first), most(seen.last, keys.last)};
            }
            if (splits_ == 1 || g.dim_u > 1) seen = {0, g.keys()};
            seen.last = most(seen.first, seen.last);
            seen_keys_[split] = seen;
            sum_start_[split] = start;
            start += seen.size() * g.dim_u * g.padded_v;
        }
        sum_start_[splits_] = start;
    }

    Index first_strip(Index split) const { return strips.count() * split / splits_; }

    Index example_size() const { return sum_start_[splits_]; }

    // The partial sum of dV [u, m, padded v] of an example and a split of its strips.
    T* value_sum(Index example, Index split) const {
        return workspace.at(value_sums_) + example * example_size() + sum_start_[split];
    }

    T* table_sum(Index group) const { return workspace.at(table_sums_) + group * table_size(); }

    void compute_group(Index group, T* scratch) {
        const Geometry& g = geometry;
        T* d_table = nullptr;
        if (needs_map_gradient()) {
            d_table = table_sum(group);
            clear(d_table, table_size());
        }
        Range examples{g.batch * group / groups_, g.batch * (group + 1) / groups_};
        Index split = 0;
        if (splits_ > 1) {
            examples = {group / splits_, group / splits_ + 1};
            split = group % splits_;
        }
        for (Index example = examples.first; example < examples.last; ++example) {
            T* dv = nullptr;
            if (call.dv.data) {
                dv = value_sum(example, split);
                clear(dv, sum_start_[split + 1] - sum_start_[split]);
                dv -= seen_keys_[split].first * g.padded_v;
            }
            for (Index i = first_strip(split); i < first_strip(split + 1); ++i)
                compute(example, strips.at(i), dv, d_table, scratch);
        }
    }

    // Adds the part of a strip to the gradients; dv and d_table are null where not needed.
    void compute(Index example, const Strip& strip, T* dv, T* d_table, T* scratch) {
        const Geometry& g = geometry;
        T *q = scratch + queries_, *upstream = scratch + upstream_, *dq = scratch + query_gradients_;
        T *map = scratch + map_, *map_gradient = scratch + map_gradient_, *transposed = scratch + transposed_;
        auto seen = reinterpret_cast<SeenRow*>(scratch + seen_);
        const Index queries = strip.queries() * g.heads;
        Base::pack_queries(call.q, example, strip, g.dim_k, g.padded_k, q);
        Base::pack_queries(call.g, example, strip, g.dim_v, g.padded_v, upstream);
        if (d_table) {
            if (call.content_lambda.data)
                apply_content_lambda(example, queries, upstream, dq, scratch + content_);
            else
                clear(dq, queries * g.padded_k);
        }
        const bool finite = all_finite(q, queries * g.padded_k) && all_finite(upstream, queries * g.padded_v);
        const Index tile_queries = Base::queries_of_tiles(finite);
        for (Index row = strip.rows.first; row < strip.rows.last; ++row) {
            if (d_table) transpose_tiles(strip, row, tile_queries, upstream, transposed);
            Base::for_tiles(strip, row, tile_queries, seen, [&](const Tile& tile) {
                const T* tile_upstream = upstream + tile.first * g.heads * g.padded_v;
                if (dv) {
                    Base::compute_map(tile, q, map);
                    add_value_gradient(tile, map, tile_upstream, dv);
                }
                if (d_table) {
                    compute_map_gradient(
                        tile, example, transposed + tile.index * transposed_tile(), map_gradient);
                    add_table_gradient(tile, map_gradient, q, dq, d_table);
                }
            });
        }
        if (call.dq.data) Base::unpack_queries(dq, call.dq, example, strip, g.dim_k, g.padded_k);
    }

    // dV += S^T g.
    void add_value_gradient(const Tile& tile, const T* map, const T* upstream, T* dv) {
        const Geometry& g = geometry;
        const Segment inner{0, 0, tile.count * g.heads};
        Shape shape{};
        shape.segments = &inner;
        shape.segment_count = 1;
        shape.left_row = MAP_ROW;
        shape.right_row = shape.result_row = g.padded_v;
        shape.add = true;
        for (Index i = 0; i < tile.run_count; ++i) {
            const Segment& run = tile.runs[i];
            multiply<T, Left::COLUMNS>(
                shape, run.length, nullptr, g.padded_v / LANES<T>, map + run.left, upstream, dv + run.right);
        }
    }

    // Elements of a tile of the upstream gradient, transposed.
    Index transposed_tile() const { return geometry.padded_v * map_gradient_row_; }

    // Transposes the upstream gradient of the tiles of a row: [tiles, padded v, rows of the tile].
    void transpose_tiles(const Strip& strip, Index row, Index tile_queries, const T* upstream, T* transposed) {
        const Geometry& g = geometry;
        const Index queries = strip.columns.size(), padded = g.padded_v;
        upstream += (row - strip.rows.first) * queries * g.heads * padded;
        for (Index first = 0; first < queries; first += tile_queries) {
            const Index rows = least(tile_queries, queries - first) * g.heads;
            for (Index i = 0; i < rows; i += LANES<T>)
                for (Index j = 0; j < padded; j += LANES<T>)
                    copy_block_transposed<T>(
                        {upstream + (first * g.heads + i) * padded + j, 1, padded},
                        {transposed + j * map_gradient_row_ + i, map_gradient_row_, 1});
            transposed += transposed_tile();
        }
    }

    // The transpose of dS: V g^T.
    void compute_map_gradient(const Tile& tile, Index example, const T* transposed, T* map_gradient) {
        const Geometry& g = geometry;
        const Index rows = tile.count * g.heads, row = map_gradient_row_;
        const T* values = Base::values_of(example);
        const Segment inner{0, 0, g.dim_v};
        Shape shape{};
        shape.segments = &inner;
        shape.segment_count = 1;
        shape.left_row = g.padded_v;
        shape.right_row = shape.result_row = row;
        for (Index i = 0; i < tile.run_count; ++i) {
            const Segment& run = tile.runs[i];
            multiply<T, Left::ROWS>(
                shape, run.length, nullptr, divide_up(rows, LANES<T>), values + run.right, transposed,
                map_gradient + run.left * row);
        }
    }

    // dq += dS E and dE += dS^T q, for the elements that each query sees.
    void add_table_gradient(const Tile& tile, const T* map, const T* q, T* dq, T* d_table) {
        const Geometry& g = geometry;
        for (Index i = 0; i < tile.count; ++i) {
            const Index query = (tile.first + i) * g.heads * g.padded_k, x = tile.x + i;
            Range keys{
                most(tile.keys.first, x - g.x.centre), least(tile.keys.last, x + g.x.entries - g.x.centre)};
            if (keys.size() <= 0) continue;
            QueryRows<T> rows;
            rows.map_column = map_gradient_row_;
            rows.map_row = tile.width * map_gradient_row_;
            rows.map = map + i * g.heads + (keys.first - tile.keys.first + tile.offset) * map_gradient_row_;
            rows.rows = tile.rows;
            rows.count = tile.row_count;
            rows.columns = keys.size();
            rows.slab = g.x.entries * g.padded_k;
            rows.first = (keys.first - x + g.x.centre) * g.padded_k;
            rows.table = workspace.at(embeddings_);
            rows.d_table = d_table;
            rows.padded = g.padded_k;
            add_gradients(rows, g.heads, q + query, dq + query);
        }
    }

    // Writes g times the transposed content lambda into dq.
    void apply_content_lambda(Index example, Index rows, const T* upstream, T* dq, T* content) {
        const Geometry& g = geometry;
        const LambdanetsTensor& from = call.content_lambda;
        copy<T>(
            {Base::tensor(from) + example * from.stride[0], from.stride[2], from.stride[1]},
            {content, g.padded_k, 1}, g.dim_v, g.dim_k);
        clear_columns(content, g.padded_k, g.dim_v, g.dim_k, g.padded_k);
        const Segment inner{0, 0, g.dim_v};
        Shape shape{};
        shape.segments = &inner;
        shape.segment_count = 1;
        shape.left_row = g.padded_v;
        shape.right_row = shape.result_row = g.padded_k;
        multiply<T, Left::ROWS>(shape, rows, nullptr, g.padded_k / LANES<T>, upstream, content, dq);
    }

    // Adds up the groups' gradients of one slab of the table, and writes them.
    void write_table_gradient(Index slab) {
        const Geometry& g = geometry;
        const LambdanetsTensor& de = call.de;
        const Index size = g.x.entries * g.padded_k;
        T* sum = table_sum(0) + slab * size;
        for (Index group = 1; group < groups_; ++group) add(sum, table_sum(group) + slab * size, size);
        Index y = slab % g.y.entries, z = slab / g.y.entries % g.z.entries, u = slab / g.y.entries / g.z.entries;
        T* to = static_cast<T*>(de.data) + z * de.stride[0] + y * de.stride[1] + u * de.stride[4];
        copy<T>({sum, g.padded_k, 1}, {to, de.stride[2], de.stride[3]}, g.x.entries, g.dim_k);
    }

    // Adds up the splits' gradients of a part of the values, and writes them.
    void write_value_gradient(Index part, T* sum) {
        const Geometry& g = geometry;
        Index packed, count;
        Matrix<T> to = Base::value_part(call.dv, part, packed, count);
        const Index example = packed / g.packed_keys(), u = packed / g.keys() % g.dim_u;
        const Range keys{packed % g.keys(), packed % g.keys() + count};
        const T* from = sum;
        if (splits_ == 1) {
            from = value_sum(example, 0) + packed % g.packed_keys() * g.padded_v;
        } else {
            clear(sum, count * g.padded_v);
            for (Index split = 0; split < splits_; ++split) {
                Range seen = seen_keys_[split];
                Range both{most(keys.first, seen.first), least(keys.last, seen.last)};
                if (both.size() > 0)
                    add(sum + (both.first - keys.first) * g.padded_v,
                        value_sum(example, split) + (u * seen.size() + both.first - seen.first) * g.padded_v,
                        both.size() * g.padded_v);
            }
        }
        copy<T>({from, g.padded_v, 1}, to, count, g.dim_v);
    }

    static void add(T* sum, const T* x, Index count) {
        for (Index i = 0; i < count; ++i) sum[i] += x[i];
    }

    Index splits_, groups_;
    Range seen_keys_[MAX_SPLITS];        // packed context elements that a split may see
    Index sum_start_[MAX_SPLITS + 1];   // of the splits' sums, in those of an example
    Index embeddings_ = 0;               // the table [u z y, x, padded k]
    Index table_sums_ = 0, value_sums_ = 0;
    Index scratch_, scratch_size_;  // memory of the workers
    Index queries_, upstream_, query_gradients_, content_, map_, map_gradient_, transposed_, sum_, seen_;
    Index map_gradient_row_;  // elements of a row of the map's gradient: the rows of a tile
};

}  // namespace
