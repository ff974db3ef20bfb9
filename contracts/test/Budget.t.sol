// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {Federation} from "../src/Federation.sol";
import {RecordAndReward} from "../src/RecordAndReward.sol";
import {Refusal} from "../src/Refusal.sol";
import {Fixture} from "./Fixture.sol";
import {VM} from "./Vm.sol";

/// @notice What a device may spend of its privacy. This test is the owner; Alice and Bob are enrolled.
contract BudgetTest is Fixture {
    uint64 internal constant EPSILON = 8e6;

    RecordAndReward internal federation;

    function setUp() public {
        _deploy(EPSILON);
    }

    function test_KeepsTheBudget() public view {
        VM.assertEq(federation.budget(), EPSILON);
    }

    function test_RecordsWhatWasSpent() public {
        Federation.SignedContribution memory item = _spending(3e6);
        _expectAccepted(federation, item, 1000);
        federation.submit(_one(item));
        VM.assertEq(_spent(ALICE), 3e6);
        VM.assertEq(_spent(BOB), 0);
    }

    function test_AcceptsTheWholeBudget() public {
        _assertOutcome(EPSILON, Refusal.None);
    }

    function test_RefusesMoreThanTheBudget() public {
        _assertOutcome(EPSILON + 1, Refusal.OverBudget);
        VM.assertEq(_spent(ALICE), 0);
    }

    function test_WhatWasNotPaidDoesNotUseUpTheOneContribution() public {
        _assertOutcome(EPSILON + 1, Refusal.OverBudget);
        _assertOutcome(0, Refusal.BudgetDecreased);
        _assertOutcome(1e6, Refusal.None);
        _assertOutcome(EPSILON + 1, Refusal.SecondContribution);
    }

    function test_RefusesAContributionThatCostsNothing() public {
        _assertOutcome(0, Refusal.BudgetDecreased);
    }

    function test_RefusesLessThanWasSpentBefore() public {
        _assertOutcome(3e6, Refusal.None);
        _advance();
        _assertOutcome(3e6 - 1, Refusal.BudgetDecreased);
        VM.assertEq(_spent(ALICE), 3e6);
    }

    /// @dev The same charge again would be two updates for the price of one.
    function test_RefusesTheSameAgain() public {
        _assertOutcome(3e6, Refusal.None);
        _advance();
        _assertOutcome(3e6, Refusal.BudgetDecreased);
    }

    function test_AcceptsTheLeastMore() public {
        _assertOutcome(3e6, Refusal.None);
        _advance();
        _assertOutcome(3e6 + 1, Refusal.None);
        VM.assertEq(_spent(ALICE), 3e6 + 1);
    }

    /// @dev Its update has left the device all the same.
    function test_WhatTheSchemeRefusesIsSpentToo() public {
        Federation.Contribution memory c = _contribution(ALICE);
        (c.spent, c.errors) = (3e6, "");
        (Refusal reason,) = _outcome(federation, _sign(ALICE_KEY, federation, c));
        _assertEq(reason, Refusal.BadEvidence);
        VM.assertEq(_spent(ALICE), 3e6);
    }

    function test_WhatTheOwnerRefusesIsSpentToo() public {
        federation.submit(_one(_spending(3e6)));
        federation.refuse(ALICE, Refusal.NotStored);
        VM.assertEq(_spent(ALICE), 3e6);
    }

    function test_AForgeryIsNotSpent() public {
        Federation.Contribution memory c = _contribution(ALICE);
        c.spent = 3e6;
        (Refusal reason,) = _outcome(federation, _sign(BOB_KEY, federation, c));
        _assertEq(reason, Refusal.BadSignature);
        VM.assertEq(_spent(ALICE), 0);
    }

    function test_PaymentsKeepWhatWasSpent() public {
        federation.submit(_one(_spending(3e6)));
        federation.pay(_one(ALICE));
        VM.assertEq(_due(federation, ALICE), 0);
        VM.assertEq(_spent(ALICE), 3e6);
    }

    function test_WithoutABudgetNothingIsSpent() public {
        _deploy(0);
        _assertOutcome(0, Refusal.None);
        _advance();
        _assertOutcome(0, Refusal.None);
        _advance();
        _assertOutcome(1, Refusal.OverBudget);
    }

    /// @dev Against the rule in words: more than before, and no more than the budget.
    function testFuzz_WhatIsSpentOnlyGrowsUpToTheBudget(uint64 budget, uint64[6] memory asked) public {
        budget = uint64(_bound(budget, 1, type(uint64).max));
        _deploy(budget);
        uint64 before;
        for (uint256 i; i < asked.length; ++i) {
            // Near what was spent, near the budget, or anywhere.
            if (asked[i] % 3 == 0) asked[i] = uint64(_bound(asked[i], before, uint256(before) + 2));
            if (asked[i] % 3 == 1) asked[i] = budget - uint64(_bound(asked[i], 0, budget < 2 ? budget : 2));
            (Refusal reason,) = _outcome(federation, _spending(asked[i]));
            if (asked[i] > budget) _assertEq(reason, Refusal.OverBudget);
            else if (asked[i] <= before) _assertEq(reason, Refusal.BudgetDecreased);
            else _assertEq(reason, Refusal.None);
            if (reason == Refusal.None) before = asked[i];
            VM.assertEq(_spent(ALICE), before);
            VM.assertLe(before, budget);
            federation.pay(_one(ALICE));
            _advance();
        }
    }

    // Helpers.

    function _deploy(uint64 budget) internal {
        federation = new RecordAndReward(
            token,
            RecordAndReward.Plan({
                digest: PLAN,
                rule: RecordAndReward.Rule.Trend,
                thresholdPpm: 0,
                gainPpm: 0,
                clearPpm: 0,
                harmPpm: 0,
                leastPpm: 1,
                rate: 1,
                maxDataCost: 1000,
                patience: PATIENCE,
                budget: budget
            }),
            _model("model 0")
        );
        federation.enrol(_one(ALICE));
        federation.enrol(_one(BOB));
    }

    function _spending(uint64 spent) internal view returns (Federation.SignedContribution memory) {
        Federation.Contribution memory c = _contribution(ALICE);
        (c.version, c.spent) = (federation.version(), spent);
        return _sign(ALICE_KEY, federation, c);
    }

    function _assertOutcome(uint64 spent, Refusal expected) internal {
        (Refusal reason,) = _outcome(federation, _spending(spent));
        _assertEq(reason, expected);
    }

    function _advance() internal {
        federation.pay(_one(ALICE));
        federation.advance(SEED, _model("next model"), _total(federation));
    }

    function _spent(address device) internal view returns (uint64 spent) {
        (,,, spent) = federation.devices(device);
    }
}
