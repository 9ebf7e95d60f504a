// The grids: which context elements a row of queries sees, and how the work is cut.
//
// Queries and context elements are numbered along rows of axis x. Under a dilation of x the elements with the
// same remainder x % step see each other only: each such residue is a grid of its own, with step 1 on x.
// A packed array of context elements has the axes [u, residue, z, y, x]; without a dilation of x that is
// their natural order.
#pragma once

#include "interface.h"
#include "vector.h"

namespace {

struct Range {
    Index first, last;  // [first, last); empty if last <= first

    Index size() const { return maximum(0, last - first); }
    Range within(Range other) const { return {maximum(first, other.first), minimum(last, other.last)}; }
};

// One axis of the grids and of the table.
struct Axis {
    Index queries, keys, entries, centre, step;

    // The table's entries that the query at a position sees.
    Range entries_of(Index position) const {
        return {
            maximum(0, centre - position / step),
            minimum(entries, centre + divide_down(keys - 1 - position, step) + 1)
        };
    }

    Index key(Index position, Index entry) const { return position + step * (entry - centre); }

    // The keys that any query in a range may see; without regard to the step.
    Range keys_of(Range positions) const {
        Range reach{positions.first - centre * step, positions.last + (entries - 1 - centre) * step};
        return reach.within({0, keys});
    }
};

// The number of elements of [0, size) with this residue.
inline Index residue_size(Index size, Index residue, Index step) {
    return size > residue ? (size - residue - 1) / step + 1 : 0;
}

// Elements at a constant distance in memory that follow each other in a packed array.
struct Run {
    Index first, distance;  // in memory
    Index packed;           // the first one in the packed array
    Index count;
};

// A part of the queries of one example: some rows, or a part of one row.
struct Strip {
    Index residue;
    Range rows;     // numbered z * Y + y
    Range columns;  // on x, within the residue

    Index queries() const { return rows.size() * columns.size(); }
};

// A row of context elements that a row of queries sees: its slab of the table, and its first element in a
// packed array.
struct SeenRow {
    Index slab, position;
};

struct Geometry {
    Index batch, heads, dim_k, dim_v, dim_u;
    Index padded_k, padded_v;  // rounded up to whole vectors
    Axis z, y, x;

    Geometry(const LambdanetsCall& call, Index lanes)
        : batch(call.batch),
          heads(call.heads),
          dim_k(call.dim_k),
          dim_v(call.dim_v),
          dim_u(call.dim_u),
          padded_k(round_up(call.dim_k, lanes)),
          padded_v(round_up(call.dim_v, lanes)),
          z(axis(call, 0)),
          y(axis(call, 1)),
          x(axis(call, 2)) {}

    Index query_rows() const { return z.queries * y.queries; }
    Index key_rows() const { return z.keys * y.keys; }
    Index queries() const { return query_rows() * x.queries; }
    Index keys() const { return key_rows() * x.keys; }
    Index packed_keys() const { return dim_u * keys(); }
    Index slabs() const { return dim_u * z.entries * y.entries; }
    Index residues() const { return minimum(x.step, x.queries); }
    Index row_queries(Index residue) const { return residue_size(x.queries, residue, x.step); }
    Index row_keys(Index residue) const { return residue_size(x.keys, residue, x.step); }

    // Whether every query sees the whole of each row of the context that it sees.
    bool covers_rows() const { return x.centre >= row_queries(0) - 1 && x.entries - x.centre >= row_keys(0); }

    // Pairs of queries and context elements with an entry, at most, for each example.
    double pairs() const {
        return double(z.queries) * minimum(z.keys, z.entries) * y.queries * minimum(y.keys, y.entries) *
               x.queries * minimum(x.keys, x.entries) * dim_u;
    }

    // The keys of a row, within a residue, that some queries of a row see.
    Range row_keys_of(Index residue, Range queries) const {
        Range reach{queries.first - x.centre, queries.last - 1 + x.entries - x.centre};
        return reach.within({0, row_keys(residue)});
    }

    // The first packed element of a residue, for u = 0.
    Index residue_start(Index residue) const {
        Index before = x.keys / x.step * residue + minimum(residue, x.keys % x.step);
        return key_rows() * before;
    }

    // The most rows of the context that a row of queries sees.
    Index max_seen_rows() const { return dim_u * minimum(z.keys, z.entries) * minimum(y.keys, y.entries); }

    // Writes the rows of the context that a row of queries sees; returns how many.
    Index seen_rows(Index residue, Index row, SeenRow* seen) const {
        Index query_z = row / y.queries, query_y = row % y.queries, count = 0;
        Range entries_z = z.entries_of(query_z), entries_y = y.entries_of(query_y);
        for (Index u = 0; u < dim_u; ++u)
            for (Index j = entries_z.first; j < entries_z.last; ++j)
                for (Index i = entries_y.first; i < entries_y.last; ++i) {
                    Index key_row = z.key(query_z, j) * y.keys + y.key(query_y, i);
                    seen[count++] = {
                        (u * z.entries + j) * y.entries + i,
                        u * keys() + residue_start(residue) + key_row * row_keys(residue)
                    };
                }
        return count;
    }

    // The queries of a strip are packed in their order: in one run, or in one for each row.
    Index query_runs(const Strip& strip) const { return is_whole(strip) ? 1 : strip.rows.size(); }

    Run query_run(const Strip& strip, Index run) const {
        const Index row = strip.rows.first + run, columns = strip.columns.size();
        return {
            row * x.queries + strip.residue + strip.columns.first * x.step, x.step, run * columns,
            is_whole(strip) ? strip.queries() : columns
        };
    }

    // The context elements of an example and a u are packed in runs of up to `RUN`, or in one for each row.
    static constexpr Index RUN = 256;

    Index key_runs() const { return x.step == 1 ? divide_up(keys(), RUN) : x.step * key_rows(); }

    Index longest_key_run() const { return x.step == 1 ? RUN : row_keys(0); }

    Run key_run(Index run) const {
        if (x.step == 1) return {run * RUN, 1, run * RUN, minimum(RUN, keys() - run * RUN)};
        const Index residue = run / key_rows(), row = run % key_rows();
        return {
            row * x.keys + residue, x.step, residue_start(residue) + row * row_keys(residue),
            row_keys(residue)
        };
    }

   private:
    // Whether a strip has whole rows that follow each other in memory.
    bool is_whole(const Strip& strip) const { return x.step == 1 && strip.columns.size() == x.queries; }

    static Axis axis(const LambdanetsCall& call, int i) {
        return {call.grid[i], call.context_grid[i], call.table[i], call.centre[i], call.step[i]};
    }
};

// How the queries of an example are cut into strips, the same for any number of threads.
class Strips {
   public:
    // Makes strips of up to `size` queries, of whole rows if those are shorter. A size of one would make
    // empty parts of rows: the rows of some residues have one query less than those of others.
    Strips(const Geometry& geometry, Index size) : geometry_(geometry) {
        const Index row = geometry.row_queries(0), rows = geometry.query_rows();
        size = maximum(2, size);
        row_parts_ = divide_up(row, size);
        row_groups_ = row_parts_ > 1 ? rows : divide_up(rows, size / row);
    }

    Index count() const { return geometry_.residues() * row_groups_ * row_parts_; }

    Index max_row_queries() const { return divide_up(geometry_.row_queries(0), row_parts_); }

    Index max_queries() const { return divide_up(geometry_.query_rows(), row_groups_) * max_row_queries(); }

    Strip at(Index index) const {
        Index part = index % row_parts_, group = index / row_parts_ % row_groups_;
        Index residue = index / row_parts_ / row_groups_;
        Index rows = geometry_.query_rows(), columns = geometry_.row_queries(residue);
        return {
            residue,
            {rows * group / row_groups_, rows * (group + 1) / row_groups_},
            {columns * part / row_parts_, columns * (part + 1) / row_parts_}
        };
    }

    // The range of the packed context elements (for u = 0) that a strip may see.
    Range keys_of(const Strip& strip) const {
        const Geometry& g = geometry_;
        Index y_queries = g.y.queries, width = g.row_keys(strip.residue);
        Range z = g.z.keys_of({strip.rows.first / y_queries, (strip.rows.last - 1) / y_queries + 1});
        Range y{0, g.y.keys};
        if (strip.rows.first / y_queries == (strip.rows.last - 1) / y_queries) {
            Index first = strip.rows.first % y_queries;
            y = g.y.keys_of({first, first + strip.rows.size()});
        }
        Range x{0, width};
        if (row_parts_ > 1) x = g.row_keys_of(strip.residue, strip.columns);
        Index start = g.residue_start(strip.residue);
        if (!z.size() || !y.size() || !x.size()) return {start, start};
        return {
            start + (z.first * g.y.keys + y.first) * width + x.first,
            start + ((z.last - 1) * g.y.keys + y.last - 1) * width + x.last
        };
    }

   private:
    const Geometry& geometry_;
    Index row_parts_, row_groups_;
};

}  // namespace
