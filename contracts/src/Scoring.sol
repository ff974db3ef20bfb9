// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Bits} from "./Bits.sol";

/// @title Scoring
/// @notice papers/3 algorithm 1: the contribution scoring procedure, in units of 1/65535, every division rounded down.
/// @dev The same rules in Python: `flower_chain/rules/blockflow.py`. A row is what one auditor says of every model, a
///      big-endian uint16 each. Sixteen scores are read at once and worked on as eight lanes of 32 bits, twice: a lane has
///      room for a carry, so that no lane disturbs the next. Medians are not searched but verified: the caller says
///      which scores are in the middle, and smaller and larger ones are counted.
library Scoring {
    /// @notice The score of a perfect model.
    uint256 internal constant ONE = type(uint16).max;

    // slither-disable-start too-many-digits

    /// @dev One in each lane; the 16 bits of a score in each lane; the carry of each lane.
    uint256 private constant UNITS = 0x0000000100000001000000010000000100000001000000010000000100000001;
    uint256 private constant VALUES = 0x0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff0000ffff;
    uint256 private constant CARRIES = 0x0001000000010000000100000001000000010000000100000001000000010000;

    // slither-disable-end too-many-digits

    /// @dev The matrix, and the largest distance from a median that was found in each row so far, lane by lane.
    /// @param live Whose models are scored, a bit for each agent. They are the auditors as well.
    /// @param auditors How many they are.
    /// @param stride Bytes in a row, which holds a score of every agent that was ever enrolled.
    struct Audit {
        uint256 live;
        uint256 auditors;
        uint256 stride;
        uint256[] furthest;
    }

    /// @dev Eight columns, lane by lane: the scores in the middle and their mean, and which columns are of `live` agents. In
    ///      memory, or the compiler works them out anew for every row.
    struct Columns {
        uint256 low;
        uint256 high;
        uint256 median;
        uint256 models;
    }

    /// @notice The rows are not one for each auditor, or the medians not one for each model.
    error WrongShape();

    /// @notice A score that is said to be in the middle of its column is not: one of the sixteen columns from `column` on.
    error NotTheMedian(uint256 column);

    /// @notice The overall scores p_k of the agents in `live`, ascending, and their sum.
    /// @param live A bit for each agent that is left.
    /// @param agents How many scores a row holds.
    /// @param rows One after another, of the agents in `live`, ascending.
    /// @param lower A row of medians; for an even number of auditors, of the lower of the middle two.
    /// @param upper For an even number of auditors, a row of the upper of the middle two.
    function score(uint256 live, uint256 agents, bytes calldata rows, bytes calldata lower, bytes calldata upper)
        internal
        pure
        returns (uint256[] memory overall, uint256 sum)
    {
        Audit memory audit = Audit(live, Bits.count(live), 2 * agents, new uint256[](0));
        if (audit.auditors % 2 == 1) upper = lower;
        if (rows.length != audit.auditors * audit.stride) revert WrongShape();
        if (lower.length != audit.stride || upper.length != audit.stride) revert WrongShape();
        audit.furthest = new uint256[](audit.auditors);
        for (uint256 column; column < agents; column += 16) {
            uint256 models = _spread(live >> column);
            bool found = _audit(audit, 2 * column, 16, models, rows, lower, upper);
            if (!(_audit(audit, 2 * column, 0, models, rows, lower, upper) && found)) revert NotTheMedian(column);
        }
        return _overall(audit, lower, upper);
    }

    /// @notice The overall scores p_k and their sum. Both arguments are used up.
    /// @param medians m_k of each agent.
    /// @param furthest How far from a median each is at most, as an auditor.
    function share(uint256[] memory medians, uint256[] memory furthest)
        internal
        pure
        returns (uint256[] memory overall, uint256 sum)
    {
        unchecked {
            overall = medians;
            uint256 bestModel = 0;
            uint256 bestAudit = 0;
            for (uint256 i; i < medians.length; ++i) {
                furthest[i] = _trust(furthest[i]);
                if (medians[i] > bestModel) bestModel = medians[i];
                if (furthest[i] > bestAudit) bestAudit = furthest[i];
            }
            for (uint256 i; i < medians.length; ++i) {
                uint256 model = _scaled(medians[i], bestModel);
                uint256 evaluation = _scaled(furthest[i], bestAudit);
                overall[i] = model < evaluation ? model : evaluation;
                sum += overall[i];
            }
        }
    }

    /// @notice The score at `place` of rows that are known to hold it.
    function scoreAt(bytes calldata rows, uint256 place) internal pure returns (uint256) {
        return _read(rows, 2 * place) >> 240;
    }

    /// @dev Eight columns of the sixteen at `offset`: those that lie `shift` bits up. Notes how far from the median each
    ///      auditor is, and tells whether the scores that are said to be in the middle are.
    function _audit(
        Audit memory audit,
        uint256 offset,
        uint256 shift,
        uint256 models,
        bytes calldata rows,
        bytes calldata lower,
        bytes calldata upper
    ) private pure returns (bool) {
        unchecked {
            Columns memory columns;
            columns.low = _read(lower, offset) >> shift & VALUES;
            columns.high = _read(upper, offset) >> shift & VALUES;
            columns.median = (columns.low + columns.high) >> 1 & VALUES;
            columns.models = models >> shift & VALUES;
            (uint256 atLeastLow, uint256 atMostLow, uint256 atLeastHigh, uint256 atMostHigh) = (0, 0, 0, 0);
            uint256[] memory furthest = audit.furthest;
            uint256 stride = audit.stride;
            bool even = audit.auditors % 2 == 0;
            // The loop over all scores, where most of the gas goes: Solidity would check every access to the array.
            // slither-disable-start assembly
            assembly ("memory-safe") {
                // Like `_notLess` and `_max`, which are not inlined.
                function notLess(a, b) -> carries {
                    carries := and(sub(or(a, CARRIES), b), CARRIES)
                }
                function max(a, b) -> larger {
                    let carries := notLess(a, b)
                    larger := xor(b, and(xor(a, b), sub(carries, shr(16, carries))))
                }
                let cell := add(furthest, 0x20)
                for { let end := add(cell, shl(5, mload(furthest))) } lt(cell, end) { cell := add(cell, 0x20) } {
                    let scores := and(shr(shift, calldataload(add(rows.offset, offset))), VALUES)
                    offset := add(offset, stride)
                    atLeastLow := add(atLeastLow, notLess(scores, mload(columns)))
                    atMostLow := add(atMostLow, notLess(mload(columns), scores))
                    if even {
                        atLeastHigh := add(atLeastHigh, notLess(scores, mload(add(columns, 0x20))))
                        atMostHigh := add(atMostHigh, notLess(mload(add(columns, 0x20)), scores))
                    }
                    // |a - b| = 2 max(a, b) - a - b; not of models that are out.
                    let median := mload(add(columns, 0x40))
                    let distance := sub(sub(shl(1, max(scores, median)), scores), median)
                    mstore(cell, max(mload(cell), and(distance, mload(add(columns, 0x60)))))
                }
            }
            // slither-disable-end assembly
            return _haveRank(atLeastLow, atMostLow, (audit.auditors - 1) / 2, audit.auditors, columns.models)
                && (!even || _haveRank(atLeastHigh, atMostHigh, audit.auditors / 2, audit.auditors, columns.models));
        }
    }

    /// @dev Whether for each of `models` the value that was counted is the one that has `rank` before it in sorted order.
    ///      If no auditor gave it, one of the two counts is too small.
    function _haveRank(uint256 atLeast, uint256 atMost, uint256 rank, uint256 auditors, uint256 models)
        private
        pure
        returns (bool)
    {
        unchecked {
            uint256 enough =
                _notLess(atLeast >> 16, UNITS * (auditors - rank)) & _notLess(atMost >> 16, UNITS * (rank + 1));
            return models & ~_fill(enough) == 0;
        }
    }

    /// @dev p_k, from the medians and the largest distances.
    function _overall(Audit memory audit, bytes calldata lower, bytes calldata upper)
        private
        pure
        returns (uint256[] memory, uint256)
    {
        unchecked {
            uint256[] memory medians = new uint256[](audit.auditors);
            uint256 agent = 0;
            for (uint256 i; i < medians.length; ++i) {
                agent = Bits.next(audit.live, agent);
                medians[i] = (scoreAt(lower, agent) + scoreAt(upper, agent)) / 2;
                audit.furthest[i] = _largest(audit.furthest[i]);
                ++agent;
            }
            return share(medians, audit.furthest);
        }
    }

    /// @dev t' of an evaluation that is `distance` away from the median. It falls with the distance, so that the least of
    ///      an auditor's is that of its largest distance.
    function _trust(uint256 distance) private pure returns (uint256) {
        unchecked {
            return 2 * distance < ONE ? (ONE - 2 * distance) * ONE / (ONE + 2 * distance) : 0;
        }
    }

    /// @dev `value` over the largest of its kind; zero if that is.
    function _scaled(uint256 value, uint256 largest) private pure returns (uint256) {
        unchecked {
            return largest == 0 ? 0 : value * ONE / largest;
        }
    }

    /// @dev The carry of each lane in which `a` is at least `b`.
    function _notLess(uint256 a, uint256 b) private pure returns (uint256) {
        unchecked {
            return ((a | CARRIES) - b) & CARRIES;
        }
    }

    /// @dev All 16 bits of the lanes with a carry.
    function _fill(uint256 carries) private pure returns (uint256) {
        unchecked {
            return carries - (carries >> 16);
        }
    }

    /// @dev The larger in each lane.
    function _max(uint256 a, uint256 b) private pure returns (uint256) {
        return b ^ ((a ^ b) & _fill(_notLess(a, b)));
    }

    /// @dev The largest of the eight lanes.
    function _largest(uint256 lanes) private pure returns (uint256) {
        lanes = _max(lanes, lanes >> 128);
        lanes = _max(lanes, lanes >> 64 & VALUES);
        return _max(lanes, lanes >> 32 & VALUES) & ONE;
    }

    /// @dev The first sixteen bits, from the lowest on, as sixteen scores from the first on: all ones where the bit is set.
    function _spread(uint256 bits) private pure returns (uint256 scores) {
        unchecked {
            for (uint256 i; i < 16; ++i) {
                scores = scores << 16 | ONE * (bits >> i & 1);
            }
        }
    }

    /// @dev The word at `offset`. What of it lies behind the end is without meaning.
    function _read(bytes calldata data, uint256 offset) private pure returns (uint256 word) {
        // Solidity has no cheaper way to read a word of calldata at any offset.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            word := calldataload(add(data.offset, offset))
        }
    }
}
