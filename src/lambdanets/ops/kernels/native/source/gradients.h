// The gradients of q, v, the table and the content lambda from g, the gradient of the output.
//
// With the map S = q E and its gradient dS = g V^T, tile by tile: dV += S^T g, dq += dS E, dE += dS^T q. Of
// dS the transpose V g^T is computed: its lanes are the rows of a tile, which fill whole vectors for any
// window. The gradient of the content lambda is q^T g.
//
// Strips of queries form groups. Those of a group run one after the other and add to the same sums of dV, dE
// and, for each example, q^T g; the sums of all groups are added in their order at the end. Groups depend on
// the problem alone, and so do the results, for any number of threads.
#pragma once

#include "pass.h"
#include "query_gradients.h"

namespace {

template <typename T>
void add(T* sum, const T* x, Index count) {
    for (Index i = 0; i < count; ++i) sum[i] += x[i];
}

// How the strips of a call form groups: of several examples, or of a part of the strips of one.
struct Groups {
    static constexpr Index WANTED = 32, LARGEST = 64;
    // Operations of a group for each byte of its sums, and the most bytes of all sums.
    static constexpr double OPERATIONS_PER_BYTE = 256, BYTES = 1 << 25;

    Index count;
    Index splits;  // groups of an example, 1 if a group has several

    // `table_bytes` and `value_bytes` are those of the sums of dE, and of dV for one example.
    Groups(const Geometry& g, Index strips, Index table_bytes, Index value_bytes) {
        const double operations = 2 * g.pairs() * g.batch * g.heads * (3 * g.dim_k + 2 * g.dim_v);
        const auto affordable = [&](Index bytes) {
            const double all = operations / OPERATIONS_PER_BYTE;
            return maximum(1, Index((all < BYTES ? all : BYTES) / bytes));
        };
        splits = 1;
        count = minimum(minimum(g.batch, LARGEST), affordable(table_bytes));
        if (g.batch < WANTED / 2) {
            // Strips with windows see a part of the values only.
            const Index bytes = table_bytes + value_bytes / (g.covers_rows() ? 1 : 2);
            splits = minimum(strips, divide_up(minimum(WANTED, affordable(bytes)), g.batch));
            count = g.batch * splits;
        }
    }
};

// With PAIRS the products of S, dV and dS multiply pairs of bfloat16 and add float32: S and dV pairs of k and
// of heads, of which there must be an even number, dS pairs of v.
template <typename T, typename Stored, bool PAIRS>
class Gradients : Pass<T, Stored, PAIRS> {
    using Base = Pass<T, Stored, PAIRS>;
    using Base::call, Base::geometry, Base::strips, Base::threads, Base::tiling;

   public:
    Gradients(const LambdanetsCall& call, const Geometry& geometry)
        : Base(call, geometry, choose_tile_queries(geometry)),
          table_size_(geometry.slabs() * slab_size()),
          groups_(
              this->geometry, strips.count(), table_size_ * sizeof(T),
              geometry.packed_keys() * geometry.padded_v * sizeof(T)
          ) {
        find_seen_keys();
    }

    int run() {
        const Geometry& g = geometry;
        Workspace workspace;
        const auto lay_out = [&](Arena& arena) { lay_out_all(arena); };
        if (!workspace.allocate(threads, lay_out, [&](Arena& arena) { Scratch(arena, *this); }))
            return LAMBDANETS_NO_MEMORY;
        parallel(call, threads, g.slabs() + Base::value_runs(), [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            if (task < g.slabs())
                pack_table(task);
            else
                pack_values(Base::value_run(task - g.slabs()), Scratch(arena, *this));
        });
        parallel(call, threads, groups_.count, [&](Index group, Index worker) {
            Arena arena = workspace.scratch(worker);
            compute_group(group, Scratch(arena, *this));
        });
        const Index table_tasks = call.de.data ? g.slabs() : 0;
        const Index value_tasks = call.dv.data ? Base::value_runs() : 0;
        const Index lambda_tasks = call.d_lambda.data ? g.batch : 0;
        parallel(call, threads, table_tasks + value_tasks + lambda_tasks, [&](Index task, Index worker) {
            Arena arena = workspace.scratch(worker);
            if (task < table_tasks)
                write_table_gradient(task);
            else if (task >= table_tasks + value_tasks)
                write_lambda_gradient(task - table_tasks - value_tasks);
            else
                write_value_gradient(Base::value_run(task - table_tasks), Scratch(arena, *this).run);
        });
        return LAMBDANETS_DONE;
    }

   private:
    // The memory of a worker.
    struct Scratch {
        Rows<T> q, dq, g;    // of a strip, packed: [queries heads, padded k or v]
        Rows<T> q_pairs;     // of a strip, pairs of k
        Rows<T> g_pairs;     // of a strip, pairs of rows
        Rows<T> content;     // the content lambda transposed, [v, padded k]
        Rows<T> map;         // of a tile
        Rows<T> d_map;       // of a tile, transposed: [columns, rows]
        Rows<T> transposed;  // g of a row of queries: [tiles padded v, rows of a tile]
        Rows<T> run;         // values of a run, or the sum of their gradients
        SeenRow* seen;       // by a row of queries

        Scratch(Arena& arena, const Gradients& pass) {
            const Geometry& geometry = pass.geometry;
            const Index rows = pass.strips.max_queries() * geometry.heads;
            const Index tile_rows = round_up(pass.tiling.queries(true) * geometry.heads, LANES<T>);
            // Tiles are transposed in whole vectors of rows: the last may read beyond the last row.
            g = {arena.take<T>((rows + LANES<T>)*geometry.padded_v), geometry.padded_v};
            q = {arena.take<T>(rows * geometry.padded_k), geometry.padded_k};
            dq = {arena.take<T>(rows * geometry.padded_k), geometry.padded_k};
            if (PAIRS) {
                q_pairs = {arena.take<T>(rows * geometry.padded_k / 2), geometry.padded_k / 2};
                g_pairs = {arena.take<T>(rows / 2 * geometry.padded_v), geometry.padded_v};
            }
            content = {arena.take<T>(geometry.dim_v * geometry.padded_k), geometry.padded_k};
            map = {arena.take<T>(pass.tiling.queries(true) * geometry.heads * MAP_ROW), MAP_ROW};
            d_map = {arena.take<T>(CHUNK * tile_rows), tile_rows};
            // Tiles may have one query each: see `Tiling::queries`. Half a vector of pairs is transposed as a
            // whole one: its other half is overwritten by the next tile.
            const Index transposed_rows = pass.strips.max_row_queries() * pass.terms_v() + LANES<T>;
            transposed = {arena.take<T>(transposed_rows * tile_rows), tile_rows};
            run = {arena.take<T>(geometry.longest_key_run() * geometry.padded_v), geometry.padded_v};
            seen = arena.take<SeenRow>(geometry.max_seen_rows());
        }
    };

    // The queries of a tile: their heads fill two vectors, or 16 rows for narrow windows, because a tile
    // computes the union of its windows.
    static Index choose_tile_queries(const Geometry& g) {
        if (g.covers_rows()) return maximum(1, 32 / g.heads);
        const Index rows = g.x.entries < 16 ? 16 : maximum(16, 2 * LANES<T>);
        return maximum(1, minimum(rows / g.heads, 2 * g.x.entries + 2));
    }

    // Elements of v, or pairs of them.
    Index terms_v() const { return geometry.padded_v / (PAIRS ? 2 : 1); }

    bool needs_map_gradient() const { return call.dq.data || call.de.data; }

    // Elements of a slab of the table and its gradient, [x, padded k].
    Index slab_size() const { return geometry.x.entries * geometry.padded_k; }

    Index first_strip(Index split) const { return strips.count() * split / groups_.splits; }

    // Finds the context elements that the strips of a split see: it has sums of dV for these.
    void find_seen_keys() {
        value_sum_start_[0] = 0;
        for (Index split = 0; split < groups_.splits; ++split) {
            Range seen{geometry.keys(), 0};
            for (Index i = first_strip(split); i < first_strip(split + 1); ++i) {
                const Range keys = strips.keys_of(strips.at(i));
                if (keys.size()) seen = {minimum(seen.first, keys.first), maximum(seen.last, keys.last)};
            }
            // With u > 1 the axis u is before m: one range does not have the parts of all u.
            if (geometry.dim_u > 1) seen = {0, geometry.keys()};
            seen_keys_[split] = seen;
            value_sum_start_[split + 1] =
                value_sum_start_[split] + seen.size() * geometry.dim_u * geometry.padded_v;
        }
    }

    void lay_out_all(Arena& arena) {
        Base::lay_out(arena);
        table_ = arena.take<T>(table_size_);
        table_sums_ = arena.take<T>(needs_map_gradient() ? groups_.count * table_size_ : 0);
        value_sums_ = arena.take<T>(call.dv.data ? geometry.batch * value_sum_start_[groups_.splits] : 0);
        const Index lambda_sums = call.d_lambda.data ? geometry.batch * groups_.splits : 0;
        lambda_sums_ = arena.take<T>(lambda_sums * lambda_size());
    }

    T* table_sum(Index group) const { return table_sums_ + group * table_size_; }

    T* value_sum(Index example, Index split) const {
        return value_sums_ + example * value_sum_start_[groups_.splits] + value_sum_start_[split];
    }

    // Elements of the gradient of an example's content lambda, [k, padded v], and its sum in a split.
    Index lambda_size() const { return geometry.dim_k * geometry.padded_v; }
    T* lambda_sum(Index example, Index split) const {
        return lambda_sums_ + (example * groups_.splits + split) * lambda_size();
    }

    void pack_table(Index index) const {
        Base::pack_slab(index);
        copy_padded(
            Base::slab(call.e, index), Rows<T>(table_ + index * slab_size(), geometry.padded_k),
            geometry.x.entries, geometry.dim_k, geometry.padded_k
        );
    }

    void pack_values(const Run& run, const Scratch& scratch) const {
        if constexpr (PAIRS) {
            copy_padded(
                Base::values(call.v, run), scratch.run, run.count, geometry.dim_v, geometry.padded_v
            );
            pair_columns(
                scratch.run, Rows<T>(Base::values_ + run.packed * terms_v(), terms_v()), run.count
            );
        } else {
            Base::pack_values(run);
        }
    }

    void compute_group(Index group, const Scratch& scratch) {
        const Index splits = groups_.splits, split = group % splits, batch = geometry.batch;
        Range examples{group / splits, group / splits + 1};
        if (splits == 1) examples = {batch * group / groups_.count, batch * (group + 1) / groups_.count};
        if (needs_map_gradient()) clear(table_sum(group), table_size_);
        for (Index example = examples.first; example < examples.last; ++example) {
            Rows<T> dv(nullptr, geometry.padded_v);
            if (call.dv.data) {
                const Index first = seen_keys_[split].first * geometry.padded_v;
                clear(value_sum(example, split), value_sum_start_[split + 1] - value_sum_start_[split]);
                dv.data = value_sum(example, split) - first;
            }
            if (call.d_lambda.data) clear(lambda_sum(example, split), lambda_size());
            for (Index i = first_strip(split); i < first_strip(split + 1); ++i)
                compute(example, strips.at(i), dv, table_sum(group), lambda_sum(example, split), scratch);
        }
    }

    // Writes dq of a strip, and adds its part to dv, if not null, and to the gradients of the table and of
    // the content lambda.
    void compute(
        Index example, const Strip& strip, Rows<T> dv, T* d_table, T* d_lambda, const Scratch& scratch
    ) {
        const Geometry& geo = geometry;
        const Index rows = strip.queries() * geo.heads;
        Base::pack_queries(call.q, example, strip, geo.dim_k, scratch.q);
        Base::pack_queries(call.g, example, strip, geo.dim_v, scratch.g);
        if (call.content_lambda.data) {
            copy_padded(
                Base::content_lambda(example).transposed(), scratch.content, geo.dim_v, geo.dim_k,
                geo.padded_k
            );
            multiply<T, Left::ROWS>(
                scratch.g, scratch.content, scratch.dq, rows, geo.dim_v, geo.padded_k / LANES<T>, false
            );
        } else {
            clear(scratch.dq.data, rows * geo.padded_k);
        }
        if (call.d_lambda.data)
            multiply<T, Left::COLUMNS>(
                scratch.q, scratch.g, {d_lambda, geo.padded_v}, geo.dim_k, rows, geo.padded_v / LANES<T>, true
            );
        if constexpr (PAIRS) {
            pair_columns(scratch.q, scratch.q_pairs, rows);
            for (Index i = 0; i < rows; i += 2)
                pair_rows(scratch.g[i], scratch.g[i + 1], geo.padded_v, scratch.g_pairs[i / 2]);
        }
        const bool finite = all_finite(scratch.q.data, rows * geo.padded_k) &&
                            all_finite(scratch.g.data, rows * geo.padded_v);
        // Only its transpose is read from here on.
        if constexpr (PAIRS) pair_columns(scratch.g, {scratch.g.data, terms_v()}, rows);
        const Index tile_queries = tiling.queries(finite);
        for (Index row = strip.rows.first; row < strip.rows.last; ++row) {
            if (needs_map_gradient()) transpose_tiles(strip, row, tile_queries, scratch);
            tiling.for_tiles(strip, row, tile_queries, scratch.seen, [&](const Tile& tile) {
                if (dv.data) add_value_gradient(tile, scratch, dv);
                if (needs_map_gradient()) add_map_gradient(tile, example, scratch, d_table);
            });
        }
        if (call.dq.data) Base::unpack_queries(scratch.dq, call.dq, example, strip, geo.dim_k);
    }

    // Transposes g of a row of queries, tile by tile.
    void transpose_tiles(const Strip& strip, Index row, Index tile_queries, const Scratch& scratch) {
        const Index heads = geometry.heads, queries = strip.columns.size();
        const Rows<const T> g(scratch.g.data, terms_v());
        T* to = scratch.transposed.data;
        const Index distance = scratch.transposed.distance;
        for (Index first = 0; first < queries; first += tile_queries, to += g.distance * distance) {
            const T* from = g[((row - strip.rows.first) * queries + first) * heads];
            for (Index i = 0; i < minimum(tile_queries, queries - first) * heads; i += LANES<T>)
                for (Index j = 0; j < g.distance; j += LANES<T>)
                    transpose_block(from + i * g.distance + j, g.distance, to + j * distance + i, distance);
        }
    }

    // dV += S^T g.
    void add_value_gradient(const Tile& tile, const Scratch& scratch, Rows<T> dv) {
        constexpr Index ROWS = PAIRS ? 2 : 1;  // of the map in a row of pairs
        constexpr MapFormat FORMAT = PAIRS ? MapFormat::PAIRS_OF_ROWS : MapFormat::PLAIN;
        const Rows<T> g = PAIRS ? scratch.g_pairs : scratch.g;
        const Index heads = geometry.heads / ROWS;
        Base::template compute_map<FORMAT>(tile, PAIRS ? scratch.q_pairs : scratch.q, scratch.map);
        for (Index i = 0; i < tile.run_count; ++i) {
            const Segment& run = tile.runs[i];
            multiply<T, PAIRS ? Left::COLUMNS_OF_PAIRS : Left::COLUMNS>(
                {scratch.map.data + run.left, MAP_ROW}, g.from(tile.first * heads),
                dv.from(run.right), run.length, tile.count * heads, geometry.padded_v / LANES<T>, true
            );
        }
    }

    // dS^T = V g^T, then dq += dS E and dE += dS^T q.
    void add_map_gradient(const Tile& tile, Index example, const Scratch& scratch, T* d_table) {
        const Index heads = geometry.heads, padded_k = geometry.padded_k, centre = geometry.x.centre;
        const Index terms = PAIRS ? divide_up(geometry.dim_v, 2) : geometry.dim_v;
        const Rows<const T> values(
            Base::values_ + example * geometry.packed_keys() * terms_v(), terms_v()
        );
        for (Index i = 0; i < tile.run_count; ++i) {
            const Segment& run = tile.runs[i];
            multiply<T, PAIRS ? Left::ROWS_OF_PAIRS : Left::ROWS>(
                values.from(run.right), scratch.transposed.from(tile.index * terms_v()),
                scratch.d_map.from(run.left), run.length, terms,
                divide_up(tile.count * heads, LANES<T>), false
            );
        }
        // Of a query the entries whose keys are in the tile, within the table.
        const auto entries_of = [&](Index i) {
            const Index entry = centre - tile.x - i;
            return Range{entry + tile.keys.first, entry + tile.keys.last}.within({0, geometry.x.entries});
        };
        for (Index i = 0; i < tile.count; i += 2) {
            const Index row = (tile.first + i) * heads, queries = minimum(2, tile.count - i);
            const Range some = entries_of(i), other = queries == 2 ? entries_of(i + 1) : some;
            const Range both = some.within(other);
            if (!some.size() && !other.size()) continue;
            // The column of the map of the first entry, for the first query.
            const Index key = tile.x + i + other.first - centre;
            Rows<const T> d_map = scratch.d_map.from(tile.offset + key - tile.keys.first);
            d_map.data += i * heads;
            const Index entry = other.first * padded_k;
            add_query_gradients<T>(
                {queries, heads, padded_k, scratch.q.from(row), scratch.dq.from(row), d_map, tile.width,
                 table_ + entry, d_table + entry, slab_size(), tile.rows, tile.row_count,
                 both.first - other.first, both.size(), some.last - both.last}
            );
        }
    }

    // Adds the groups' gradients of one slab of the table, and writes the sum.
    void write_table_gradient(Index slab) {
        T* sum = table_sum(0) + slab * slab_size();
        for (Index group = 1; group < groups_.count; ++group)
            add(sum, table_sum(group) + slab * slab_size(), slab_size());
        copy(
            Matrix<T>{sum, geometry.padded_k, 1}, Base::slab(call.de, slab), geometry.x.entries,
            geometry.dim_k
        );
    }

    // Adds the splits' gradients of a run of values, and writes the sum.
    void write_value_gradient(const Run& run, Rows<T> sum) {
        const Index keys = geometry.keys(), padded_v = geometry.padded_v;
        const Index example = run.packed / geometry.packed_keys(), u = run.packed / keys % geometry.dim_u;
        const Range elements{run.packed % keys, run.packed % keys + run.count};
        clear(sum.data, run.count * padded_v);
        for (Index split = 0; split < groups_.splits; ++split) {
            const Range seen = seen_keys_[split], both = seen.within(elements);
            if (!both.size()) continue;
            const T* part = value_sum(example, split) + (u * keys + both.first - seen.first) * padded_v;
            add(sum[both.first - elements.first], part, both.size() * padded_v);
        }
        copy(Matrix<T>{sum.data, padded_v, 1}, Base::values(call.dv, run), run.count, geometry.dim_v);
    }

    // Adds the splits' gradients of the content lambda of an example, and writes the sum.
    void write_lambda_gradient(Index example) {
        T* sum = lambda_sum(example, 0);
        for (Index split = 1; split < groups_.splits; ++split)
            add(sum, lambda_sum(example, split), lambda_size());
        const LambdanetsTensor& to = call.d_lambda;
        copy<T>(
            {sum, geometry.padded_v, 1},
            {static_cast<T*>(to.data) + example * to.stride[0], to.stride[1], to.stride[2]}, geometry.dim_k,
            geometry.dim_v
        );
    }

    const Index table_size_;
    const Groups groups_;
    Range seen_keys_[Groups::WANTED];            // by a split
    Index value_sum_start_[Groups::WANTED + 1];  // of a split, in the sums of an example
    T* table_;                                   // [u z y, x, padded k]
    T *table_sums_, *value_sums_, *lambda_sums_;  // of its gradient, dV and q^T g, by a group
};

}  // namespace
