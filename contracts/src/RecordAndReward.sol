// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Federation} from "./Federation.sol";
import {Refusal} from "./Refusal.sol";

/// @title RecordAndReward
/// @notice papers/1: a class-sampled validation error scheme (CSVES) decides from the signed validation errors whether a
///         contribution is worth anything, and an accepted one is paid for its data.
/// @dev The same rules in Python: `flower_chain/rules/record_and_reward.py`.
contract RecordAndReward is Federation {
    /// @notice How contributions are judged.
    enum Rule {
        Gain,
        Trend,
        Threshold,
        Both,
        Either
    }

    /// @notice What is agreed before the run and enforced by this contract.
    /// @param digest SHA-256 of the whole plan.
    /// @param rule How contributions are judged.
    /// @param thresholdPpm tau: the last validation error must be below.
    /// @param gainPpm Rule `Gain`: the share of the open error that the training must have removed,
    /// @param clearPpm unless the misdirection of the update is at most this;
    /// @param harmPpm above this, no gain is enough.
    /// @param leastPpm Rule `Gain`: the share of its full price that an accepted contribution is worth at least.
    /// @param rate Paid for each data point, in the token's smallest unit.
    /// @param maxDataCost The largest data cost that a device may claim.
    /// @param patience Seconds after which anyone may pay what the owner left unpaid.
    /// @param budget The most epsilon that a device may spend of its privacy, in millionths; 0 if none is counted.
    struct Plan {
        bytes32 digest;
        Rule rule;
        uint32 thresholdPpm;
        uint32 gainPpm;
        uint32 clearPpm;
        uint32 harmPpm;
        uint32 leastPpm;
        uint64 rate;
        uint32 maxDataCost;
        uint64 patience;
        uint64 budget;
    }

    /// @notice The most validation errors that a contribution may hold.
    uint256 public constant MAX_ERRORS = 64;

    /// @dev The top bit of each of eight errors in a word, and what makes it that of one that is above one.
    uint256 private constant TOP_BITS = 0x8000000080000000800000008000000080000000800000008000000080000000;
    uint256 private constant ABOVE = (2 ** 31 - 1 - uint256(PPM)) * (TOP_BITS >> 31);

    /// @notice How contributions are judged.
    Rule public immutable rule;

    /// @notice tau: the last validation error must be below, in parts per million. Not for `Gain`.
    uint32 public immutable thresholdPpm;

    /// @notice The share of the open error that the training must have removed, in parts per million. `Gain` only.
    uint32 public immutable gainPpm;

    /// @notice The misdirection up to which no gain is asked for, in parts per million. `Gain` only.
    uint32 public immutable clearPpm;

    /// @notice The misdirection above which no gain is enough, in parts per million. `Gain` only.
    uint32 public immutable harmPpm;

    /// @notice What an accepted contribution is worth at least, in parts per million of its full price. `Gain` only.
    uint32 public immutable leastPpm;

    /// @notice Paid for each data point, in the token's smallest unit.
    uint64 public immutable rate;

    /// @notice The largest data cost that a device may claim.
    uint32 public immutable maxDataCost;

    /// @notice The next model is made of this sum, which the holder of the private key decrypted and signed (EIP-712:
    ///         `DecryptedSum(uint32 version,bytes32 parts,bytes32 encrypted,bytes32 decrypted)`). Whether that fits,
    ///         whoever verifies the run checks.
    /// @param version The version whose contributions were added.
    /// @param parts SHA-256 over these contributions and their weights.
    /// @param encrypted SHA-256 of the encrypted sum.
    /// @param decrypted SHA-256 of the sum.
    /// @param cid Binary CIDv1 of the sum in the store.
    event SumRecorded(
        uint32 indexed version, bytes32 parts, bytes32 encrypted, bytes32 decrypted, bytes cid, bytes32 r, bytes32 vs
    );

    /// @notice `value` is more than `PPM`, or none where there must be some.
    error NotAShare(uint32 value);

    constructor(IERC20 token_, Plan memory plan, Model memory first)
        Federation(token_, plan.digest, plan.patience, plan.budget, first)
    {
        if (plan.thresholdPpm > PPM) revert NotAShare(plan.thresholdPpm);
        if (plan.gainPpm > PPM) revert NotAShare(plan.gainPpm);
        if (plan.clearPpm > PPM) revert NotAShare(plan.clearPpm);
        if (plan.harmPpm > PPM) revert NotAShare(plan.harmPpm);
        if (plan.leastPpm == 0 || plan.leastPpm > PPM) revert NotAShare(plan.leastPpm);
        rule = plan.rule;
        thresholdPpm = plan.thresholdPpm;
        gainPpm = plan.gainPpm;
        clearPpm = plan.clearPpm;
        harmPpm = plan.harmPpm;
        leastPpm = plan.leastPpm;
        rate = plan.rate;
        maxDataCost = plan.maxDataCost;
    }

    /// @notice Records the decrypted sum that the next model is made of; see `SumRecorded`.
    function recordSum(bytes32 parts, bytes32 encrypted, bytes32 decrypted, bytes calldata cid, bytes32 r, bytes32 vs)
        external
        onlyOwner
        whileRunning
    {
        emit SumRecorded(version, parts, encrypted, decrypted, cid, r, vs);
    }

    /// @inheritdoc Federation
    function _judge(Contribution calldata contribution) internal view override returns (Refusal reason, uint128 due) {
        uint256 dataCost = contribution.dataCost;
        if (dataCost == 0 || dataCost > maxDataCost) return (Refusal.BadDataCost, 0);
        if (!_wellFormed(contribution.errors)) return (Refusal.BadEvidence, 0);
        uint256 share = _quality(contribution.errors);
        if (share == 0) return (Refusal.Worthless, 0);
        unchecked {
            // dataCost < 2^32, rate < 2^64 and share <= PPM: below 2^96.
            // forge-lint: disable-next-line(unsafe-typecast)
            return (Refusal.None, uint128(dataCost * rate * share / PPM));
        }
    }

    /// @dev The share of its full price that a contribution is worth, in parts per million; 0 if it is refused.
    function _quality(bytes calldata errors) private view returns (uint256) {
        if (rule == Rule.Gain) return _gainQuality(errors);
        bool below = _errorAt(errors, errors.length - 4) < thresholdPpm;
        bool accepted;
        if (rule == Rule.Threshold) accepted = below;
        else if (rule == Rule.Trend) accepted = _falls(errors);
        else if (rule == Rule.Both) accepted = below && _falls(errors);
        else accepted = below || _falls(errors);
        return accepted ? PPM : 0;
    }

    /// @dev papers/1 algorithm 3: whether the slope of the least-squares line through the errors is negative. Its sign is
    ///      that of sum((2 i - (n - 1)) e_i): the denominator is positive, and doubling keeps the mean of i an integer.
    function _falls(bytes calldata errors) private pure returns (bool) {
        unchecked {
            int256 slope = 0;
            // At most MAX_ERRORS, each below 2^32.
            // forge-lint: disable-next-line(unsafe-typecast)
            int256 weight = 1 - int256(errors.length / 4);
            for (uint256 i; i < errors.length; i += 4) {
                // forge-lint: disable-next-line(unsafe-typecast)
                slope += weight * int256(_errorAt(errors, i));
                weight += 2;
            }
            return slope < 0;
        }
    }

    /// @dev The errors are the open ones, before the training and after each epoch, then the misdirection of the update.
    ///      What is left of the open error is taken off the price.
    function _gainQuality(bytes calldata errors) private view returns (uint256) {
        unchecked {
            uint256 wrongWay = _errorAt(errors, errors.length - 4);
            uint256 open = _errorAt(errors, errors.length - 8);
            // All are at most PPM: no product reaches 2^64.
            bool gained = open * PPM <= _errorAt(errors, 0) * (PPM - gainPpm);
            if (wrongWay > clearPpm && (wrongWay > harmPpm || !gained)) return 0;
            return PPM - open > leastPpm ? PPM - open : leastPpm;
        }
    }

    /// @dev Errors before and after the training, under `Gain` the misdirection too; none above one. Eight are looked at at
    ///      once: adding `ABOVE` to an error of 31 bits sets the 32nd exactly if it is above one, and carries no further.
    function _wellFormed(bytes calldata errors) private view returns (bool) {
        uint256 length = errors.length;
        if (length < (rule == Rule.Gain ? 12 : 8) || length > 4 * MAX_ERRORS || length % 4 != 0) return false;
        uint256 found;
        unchecked {
            for (uint256 i; i < length; i += 32) {
                uint256 eight = _errorsAt(errors, i);
                if (length - i < 32) eight >>= 8 * (32 - (length - i));
                found |= eight | ((eight & ~TOP_BITS) + ABOVE);
            }
        }
        return found & TOP_BITS == 0;
    }

    /// @dev Eight errors at once, of which those beyond the end are anything.
    function _errorsAt(bytes calldata errors, uint256 offset) private pure returns (uint256 eight) {
        // As in `_errorAt`.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            eight := calldataload(add(errors.offset, offset))
        }
    }

    /// @dev The error whose four bytes begin at `offset`, which the caller knows to lie within `errors`.
    function _errorAt(bytes calldata errors, uint256 offset) private pure returns (uint256 value) {
        // Solidity has no cheaper way to read a word of calldata at any offset.
        // slither-disable-next-line assembly
        assembly ("memory-safe") {
            value := shr(224, calldataload(add(errors.offset, offset)))
        }
    }
}
