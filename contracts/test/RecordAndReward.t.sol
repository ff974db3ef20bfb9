// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Federation} from "../src/Federation.sol";
import {RecordAndReward} from "../src/RecordAndReward.sol";
import {Refusal} from "../src/Refusal.sol";
import {Fixture} from "./Fixture.sol";
import {VM} from "./Vm.sol";

/// @notice What a contribution is worth. This test is the owner; Alice is enrolled.
contract RecordAndRewardTest is Fixture {
    uint32 internal constant TAU = 250_000;
    uint32 internal constant PPM = 1e6;
    uint64 internal constant RATE = 7;

    RecordAndReward internal federation;

    function setUp() public {
        _deploy(RecordAndReward.Rule.Both);
    }

    // The plan.

    function test_KeepsThePlan() public {
        _deploy(_plan(RecordAndReward.Rule.Either));
        VM.assertEq(federation.planDigest(), PLAN);
        VM.assertTrue(federation.rule() == RecordAndReward.Rule.Either);
        VM.assertEq(federation.thresholdPpm(), TAU);
        VM.assertEq(federation.gainPpm(), 100_000);
        VM.assertEq(federation.clearPpm(), 300_000);
        VM.assertEq(federation.harmPpm(), 450_000);
        VM.assertEq(federation.leastPpm(), 200_000);
        VM.assertEq(federation.rate(), RATE);
        VM.assertEq(federation.maxDataCost(), 60_000);
        VM.assertEq(federation.patience(), PATIENCE);
        VM.assertEq(federation.owner(), address(this));
    }

    // Encrypted updates.

    function test_TheOwnerRecordsADecryptedSum() public {
        bytes memory cid = hex"0155122000";
        VM.expectEmit(address(federation));
        emit RecordAndReward.SumRecorded(0, "parts", "encrypted", "decrypted", cid, "r", "vs");
        federation.recordSum("parts", "encrypted", "decrypted", cid, "r", "vs");
    }

    function test_NobodyElseRecordsADecryptedSum() public {
        VM.expectRevert(abi.encodeWithSelector(Federation.NotOwner.selector, ALICE));
        VM.prank(ALICE);
        federation.recordSum("parts", "encrypted", "decrypted", "", "r", "vs");
    }

    function test_NoSumIsRecordedOnceTheRunIsOver() public {
        federation.finish();
        VM.expectRevert(Federation.AlreadyFinished.selector);
        federation.recordSum("parts", "encrypted", "decrypted", "", "r", "vs");
    }

    // More of the plan.

    function test_RefusesAThresholdAboveOne() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Both);
        plan.thresholdPpm = PPM + 1;
        VM.expectRevert(abi.encodeWithSelector(RecordAndReward.NotAShare.selector, PPM + 1));
        new RecordAndReward(token, plan, _model("model 0"));
    }

    function test_RefusesAGainAboveOne() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Gain);
        plan.gainPpm = PPM + 1;
        VM.expectRevert(abi.encodeWithSelector(RecordAndReward.NotAShare.selector, PPM + 1));
        new RecordAndReward(token, plan, _model("model 0"));
    }

    function test_RefusesAClearAboveOne() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Gain);
        plan.clearPpm = PPM + 1;
        VM.expectRevert(abi.encodeWithSelector(RecordAndReward.NotAShare.selector, PPM + 1));
        new RecordAndReward(token, plan, _model("model 0"));
    }

    function test_RefusesAHarmAboveOne() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Gain);
        plan.harmPpm = PPM + 1;
        VM.expectRevert(abi.encodeWithSelector(RecordAndReward.NotAShare.selector, PPM + 1));
        new RecordAndReward(token, plan, _model("model 0"));
    }

    function test_RefusesALeastShareAboveOne() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Gain);
        plan.leastPpm = PPM + 1;
        VM.expectRevert(abi.encodeWithSelector(RecordAndReward.NotAShare.selector, PPM + 1));
        new RecordAndReward(token, plan, _model("model 0"));
    }

    function test_RefusesNoLeastShare() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Gain);
        plan.leastPpm = 0;
        VM.expectRevert(abi.encodeWithSelector(RecordAndReward.NotAShare.selector, 0));
        new RecordAndReward(token, plan, _model("model 0"));
    }

    // The data cost.

    function test_RefusesNoData() public {
        _assertRefused(0, _errors(900_000, 100_000), Refusal.BadDataCost);
    }

    function test_AcceptsTheLargestDataCost() public {
        _assertDue(60_000, _errors(900_000, 100_000), 60_000 * RATE);
    }

    function test_RefusesTooLargeADataCost() public {
        _assertRefused(60_001, _errors(900_000, 100_000), Refusal.BadDataCost);
    }

    function test_BadDataCostUsesUpTheOneContribution() public {
        _outcome(federation, _signed(0, _errors(900_000, 100_000)));
        _assertRefused(1000, _errors(900_000, 100_000), Refusal.SecondContribution);
    }

    // The evidence.

    function test_RefusesNoErrors() public {
        _assertRefused(1000, "", Refusal.BadEvidence);
    }

    function test_RefusesASingleError() public {
        _assertRefused(1000, abi.encodePacked(uint32(100_000)), Refusal.BadEvidence);
    }

    function test_AcceptsTwoErrors() public {
        _assertDue(1000, _errors(900_000, 100_000), 1000 * RATE);
    }

    function testFuzz_RefusesBrokenWords(uint256 length) public {
        length = _bound(length, 9, 1023);
        if (length % 4 == 0) length += 1;
        _assertRefused(1000, new bytes(length), Refusal.BadEvidence);
    }

    function test_AcceptsTheMostErrors() public {
        _assertDue(1000, _falling(64), 1000 * RATE);
    }

    function test_RefusesTooManyErrors() public {
        _assertRefused(1000, _falling(257), Refusal.BadEvidence);
    }

    function test_AcceptsAnErrorOfOne() public {
        _assertDue(1000, _errors(PPM, 100_000), 1000 * RATE);
    }

    function testFuzz_RefusesAnErrorAboveOne(uint256 index, uint32 value) public {
        value = uint32(_bound(value, PPM + 1, type(uint32).max));
        uint32[] memory errors = new uint32[](7);
        errors[_bound(index, 0, 6)] = value;
        _assertRefused(1000, _pack(errors), Refusal.BadEvidence);
    }

    // The threshold rule.

    function test_ThresholdAcceptsJustBelow() public {
        _deploy(RecordAndReward.Rule.Threshold);
        _assertDue(1000, _errors(0, TAU - 1), 1000 * RATE);
    }

    function test_ThresholdRefusesEqual() public {
        _deploy(RecordAndReward.Rule.Threshold);
        _assertRefused(1000, _errors(900_000, TAU), Refusal.Worthless);
    }

    function testFuzz_ThresholdLooksAtTheLastErrorOnly(uint256 seed, uint32 threshold) public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Threshold);
        plan.thresholdPpm = uint32(_bound(threshold, 0, PPM));
        _deploy(plan);
        uint32[] memory errors = _random(seed, PPM);
        _assertJudged(errors, errors[errors.length - 1] < plan.thresholdPpm);
    }

    // The trend rule.

    function test_TrendAcceptsFalling() public {
        _deploy(RecordAndReward.Rule.Trend);
        _assertDue(1000, _errors(900_001, 900_000), 1000 * RATE);
    }

    function test_TrendRefusesLevel() public {
        _deploy(RecordAndReward.Rule.Trend);
        _assertRefused(1000, _errors(100_000, 100_000), Refusal.Worthless);
    }

    function test_TrendRefusesRising() public {
        _deploy(RecordAndReward.Rule.Trend);
        _assertRefused(1000, _errors(100_000, 100_001), Refusal.Worthless);
    }

    /// @dev The line through 1, 0, 9, 0 rises: -3 * 1 - 1 * 0 + 1 * 9 + 3 * 0 = 6.
    function test_TrendCanRiseThoughTheLastErrorIsLower() public {
        _deploy(RecordAndReward.Rule.Trend);
        bytes memory errors = abi.encodePacked(uint32(1), uint32(0), uint32(9), uint32(0));
        _assertRefused(1000, errors, Refusal.Worthless);
    }

    /// @dev The line through 0, 9, 0, 1 falls: -3 * 0 - 1 * 9 + 1 * 0 + 3 * 1 = -6.
    function test_TrendCanFallThoughTheLastErrorIsHigher() public {
        _deploy(RecordAndReward.Rule.Trend);
        _assertDue(1000, abi.encodePacked(uint32(0), uint32(9), uint32(0), uint32(1)), 1000 * RATE);
    }

    function test_TrendHoldsTheSteepestFall() public {
        _deploy(RecordAndReward.Rule.Trend);
        uint32[] memory errors = new uint32[](64);
        for (uint256 i; i < 32; ++i) {
            errors[i] = PPM;
        }
        _assertJudged(errors, true);
    }

    function testFuzz_TrendIsTheLeastSquaresSlope(uint256 seed) public {
        _deploy(RecordAndReward.Rule.Trend);
        uint32[] memory errors = _random(seed, PPM);
        _assertJudged(errors, _slopeIsNegative(errors));
    }

    /// @dev Few and small errors often lie on a level line.
    function testFuzz_TrendIsExactAtTheTie(uint256 seed) public {
        _deploy(RecordAndReward.Rule.Trend);
        uint32[] memory errors = _random(seed, 3);
        assembly ("memory-safe") {
            if gt(mload(errors), 5) { mstore(errors, 5) }
        }
        _assertJudged(errors, _slopeIsNegative(errors));
    }

    // Both and either.

    function testFuzz_RulesCombine(uint256 seed) public {
        uint32[] memory errors = _random(seed, PPM);
        bool falls = _slopeIsNegative(errors);
        bool below = errors[errors.length - 1] < TAU;
        _deploy(RecordAndReward.Rule.Both);
        _assertJudged(errors, below && falls);
        _deploy(RecordAndReward.Rule.Either);
        _assertJudged(errors, below || falls);
    }

    function test_EitherAcceptsRisingBelowTheThreshold() public {
        _deploy(RecordAndReward.Rule.Either);
        _assertDue(1000, _errors(1, 2), 1000 * RATE);
    }

    function test_EitherAcceptsFallingAboveTheThreshold() public {
        _deploy(RecordAndReward.Rule.Either);
        _assertDue(1000, _errors(900_000, 800_000), 1000 * RATE);
    }

    // The gain rule: open errors before the training and after each epoch, then the misdirection. At the plan of this
    // test, a tenth of the open error must go from a misdirection above 0.3, and no more than 0.45 is accepted.

    function test_GainTakesTheErrorOffThePrice() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertDue(1000, _gain(900_000, 300_000, 400_000), 1000 * RATE * 7 / 10);
    }

    function test_GainPaysInFullForNoErrorAtAll() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertDue(1000, _gain(900_000, 0, 0), 1000 * RATE);
    }

    function test_GainPaysTheLeastShare() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertDue(1000, _gain(900_000, 800_001, 100_000), 1000 * RATE / 5);
    }

    function test_GainPaysTheLeastShareForAnErrorOfOne() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertDue(1000, _gain(PPM, PPM, 100_000), 1000 * RATE / 5);
    }

    function test_GainPaysMoreThanTheLeastShare() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertDue(1e4, _gain(900_000, 799_900, 100_000), uint128(RATE) * 2001);
    }

    function test_GainAcceptsTheSmallest() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertAccepted(1000, _gain(900_000, 810_000, 400_000));
    }

    function test_GainRefusesLess() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertRefused(1000, _gain(900_000, 810_001, 400_000), Refusal.Worthless);
    }

    function test_GainAcceptsTheLargestHarm() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertAccepted(1000, _gain(900_000, 300_000, 450_000));
    }

    function test_GainRefusesMoreHarm() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertRefused(1000, _gain(900_000, 300_000, 450_001), Refusal.Worthless);
    }

    function test_GainAcceptsTheClearWithoutAnyGain() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertAccepted(1000, _gain(500_000, 600_000, 300_000));
    }

    function test_GainRefusesTheLessClearWithoutAnyGain() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertRefused(1000, _gain(500_000, 600_000, 300_001), Refusal.Worthless);
    }

    function test_GainIgnoresTheEpochsBetween() public {
        _deploy(RecordAndReward.Rule.Gain);
        bytes memory errors = abi.encodePacked(uint32(900_000), PPM, PPM, uint32(300_000), uint32(400_000));
        _assertDue(1000, errors, 1000 * RATE * 7 / 10);
    }

    function test_GainRefusesAMissingMisdirection() public {
        _deploy(RecordAndReward.Rule.Gain);
        _assertRefused(1000, abi.encodePacked(uint32(900_000), uint32(0)), Refusal.BadEvidence);
    }

    function testFuzz_GainIsItsFormula(uint32[7] memory shares) public {
        for (uint256 i; i < 7; ++i) {
            // forge-lint: disable-next-line(unsafe-typecast)
            shares[i] = uint32(_bound(shares[i], i == 6 ? 1 : 0, PPM));
        }
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Gain);
        (plan.gainPpm, plan.clearPpm, plan.harmPpm, plan.leastPpm) = (shares[3], shares[4], shares[5], shares[6]);
        _deploy(plan);
        (uint256 first, uint256 open, uint256 wrongWay) = (shares[0], shares[1], shares[2]);
        bool clear = wrongWay <= shares[4];
        bool gained = wrongWay <= shares[5] && open * 1e6 <= first * (1e6 - uint256(shares[3]));
        bytes memory errors = _gain(shares[0], shares[1], shares[2]);
        if (clear || gained) {
            uint256 share = Math.max(1e6 - open, shares[6]);
            // forge-lint: disable-next-line(unsafe-typecast)
            _assertDue(1000, errors, uint128(1000 * RATE * share / 1e6));
        } else {
            _assertRefused(1000, errors, Refusal.Worthless);
        }
    }

    // The price.

    function testFuzz_PriceIsDataTimesRate(uint32 dataCost, uint64 rate) public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Both);
        plan.rate = rate;
        plan.maxDataCost = type(uint32).max;
        _deploy(plan);
        dataCost = uint32(_bound(dataCost, 1, type(uint32).max));
        _assertDue(dataCost, _errors(900_000, 100_000), uint128(dataCost) * rate);
    }

    function test_PriceHoldsTheExtremes() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Both);
        plan.rate = type(uint64).max;
        plan.maxDataCost = type(uint32).max;
        _deploy(plan);
        _assertDue(type(uint32).max, _errors(900_000, 100_000), uint128(type(uint32).max) * type(uint64).max);
    }

    function test_PriceIsZeroWithoutARate() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Both);
        plan.rate = 0;
        _deploy(plan);
        _assertDue(1000, _errors(900_000, 100_000), 0);
    }

    function test_RunWithoutARateGoesOn() public {
        RecordAndReward.Plan memory plan = _plan(RecordAndReward.Rule.Both);
        plan.rate = 0;
        _deploy(plan);
        federation.submit(_one(_signed(1000, _errors(900_000, 100_000))));
        federation.pay(_one(ALICE));
        federation.advance(SEED, _model("model 1"), _total(federation));
        VM.assertEq(federation.version(), 1);
    }

    /// @dev From the signature to the tokens.
    function test_PaysForData() public {
        require(token.transfer(address(federation), 1e6));
        federation.submit(_one(_signed(1000, _errors(900_000, 100_000))));
        federation.pay(_one(ALICE));
        federation.withdraw(ALICE);
        VM.assertEq(token.balanceOf(ALICE), 1000 * RATE);
    }

    // Helpers.

    function _plan(RecordAndReward.Rule rule) internal pure returns (RecordAndReward.Plan memory) {
        return RecordAndReward.Plan({
            digest: PLAN,
            rule: rule,
            thresholdPpm: TAU,
            gainPpm: 100_000,
            clearPpm: 300_000,
            harmPpm: 450_000,
            leastPpm: 200_000,
            rate: RATE,
            maxDataCost: 60_000,
            patience: PATIENCE,
            budget: 0
        });
    }

    function _deploy(RecordAndReward.Rule rule) internal {
        _deploy(_plan(rule));
    }

    function _deploy(RecordAndReward.Plan memory plan) internal {
        federation = new RecordAndReward(token, plan, _model("model 0"));
        federation.enrol(_one(ALICE));
    }

    function _signed(uint32 dataCost, bytes memory errors)
        internal
        view
        returns (Federation.SignedContribution memory)
    {
        Federation.Contribution memory c = _contribution(ALICE);
        (c.dataCost, c.errors) = (dataCost, errors);
        return _sign(ALICE_KEY, federation, c);
    }

    function _assertRefused(uint32 dataCost, bytes memory errors, Refusal expected) internal {
        (Refusal reason,) = _outcome(federation, _signed(dataCost, errors));
        _assertEq(reason, expected);
        VM.assertEq(_due(federation, ALICE), 0);
    }

    function _assertAccepted(uint32 dataCost, bytes memory errors) internal returns (uint128 due) {
        Refusal reason;
        (reason, due) = _outcome(federation, _signed(dataCost, errors));
        _assertEq(reason, Refusal.None);
        VM.assertEq(_due(federation, ALICE), due);
    }

    function _assertDue(uint32 dataCost, bytes memory errors, uint128 expected) internal {
        VM.assertEq(_assertAccepted(dataCost, errors), expected);
    }

    function _assertJudged(uint32[] memory errors, bool accepted) internal {
        if (accepted) _assertDue(1000, _pack(errors), 1000 * RATE);
        else _assertRefused(1000, _pack(errors), Refusal.Worthless);
    }

    function _errors(uint32 first, uint32 last) internal pure returns (bytes memory) {
        return abi.encodePacked(first, last);
    }

    function _gain(uint32 first, uint32 open, uint32 wrongWay) internal pure returns (bytes memory) {
        return abi.encodePacked(first, open, wrongWay);
    }

    function _falling(uint32 count) internal pure returns (bytes memory) {
        uint32[] memory errors = new uint32[](count);
        for (uint32 i; i < count; ++i) {
            errors[i] = 2 * (count - i);
        }
        return _pack(errors);
    }

    /// @dev 2 to 64 errors from 0 to `max`.
    function _random(uint256 seed, uint32 max) internal pure returns (uint32[] memory errors) {
        errors = new uint32[](_bound(seed, 2, 64));
        for (uint256 i; i < errors.length; ++i) {
            errors[i] = uint32(_bound(uint256(keccak256(abi.encode(seed, i))), 0, max));
        }
    }

    function _pack(uint32[] memory errors) internal pure returns (bytes memory packed) {
        packed = new bytes(4 * errors.length);
        for (uint256 i; i < packed.length; ++i) {
            packed[i] = bytes4(errors[i / 4])[i % 4];
        }
    }

    /// @dev papers/1 algorithm 3 as it is written: slope = (n sum(x y) - sum(x) sum(y)) / (n sum(x^2) - sum(x)^2).
    function _slopeIsNegative(uint32[] memory errors) internal pure returns (bool) {
        // forge-lint: disable-next-line(unsafe-typecast)
        int256 n = int256(errors.length);
        (int256 x, int256 y, int256 xx, int256 xy) = (int256(0), int256(0), int256(0), int256(0));
        for (uint256 k; k < errors.length; ++k) {
            // Below 2^32, both.
            // forge-lint: disable-next-line(unsafe-typecast)
            (int256 i, int256 e) = (int256(k + 1), int256(uint256(errors[k])));
            (x, y, xx, xy) = (x + i, y + e, xx + i * i, xy + i * e);
        }
        int256 denominator = n * xx - x * x;
        VM.assertTrue(denominator > 0);
        return n * xy - x * y < 0;
    }
}
