// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";

import {Refusal} from "./Refusal.sol";
import {Treasury} from "./Treasury.sol";

/// @title Federation
/// @notice What every scheme shares: the roles, the history of the model, and the life of a version: contributions are
///         submitted, the owner refuses what it found wrong off chain, the rest is paid, the next model is published.
/// @dev A scheme says in `_judge` what a contribution is worth. Nothing that a contribution holds can make `submit`
///      revert: a bad one is refused with a reason, the others are recorded.
abstract contract Federation is Treasury, EIP712, Multicall {
    /// @notice One version of the global model.
    /// @param digest SHA-256 of its canonical bytes.
    /// @param cid Binary CIDv1 of these bytes in the store.
    /// @param seedCommitment keccak256 of the seed of the version's validation samples, revealed when the version ends.
    /// @param errorPpm Error on the owner's validation data in parts per million, or `UNMEASURED`.
    struct Model {
        bytes32 digest;
        bytes cid;
        bytes32 seedCommitment;
        uint32 errorPpm;
    }

    /// @notice What a device signs: papers/1 table I.
    /// @param device a_i: the account that signs and is paid.
    /// @param version v_i: the version of the model that was trained.
    /// @param dataCost n_i: data points used.
    /// @param digest H(delta_i): SHA-256 of the canonical bytes of the update.
    /// @param cid Binary CIDv1 of the sealed update.
    /// @param classes C_D: bit i is set if the device holds data of class i; papers/1 algorithm 1.
    /// @param errors Validation errors before the training and after each epoch, in parts per million, each as a uint32
    ///        (big-endian, packed: an array of words would cost twice the gas).
    /// @param spent Epsilon that the device has spent of its privacy, with this contribution, in millionths, rounded up; 0
    ///        where the run has no budget.
    struct Contribution {
        address device;
        uint32 version;
        uint32 dataCost;
        bytes32 digest;
        bytes cid;
        uint256 classes;
        bytes errors;
        uint64 spent;
    }

    /// @notice A contribution with the compact signature (EIP-2098) of its device over the EIP-712 hash.
    struct SignedContribution {
        Contribution contribution;
        bytes32 r;
        bytes32 vs;
    }

    /// @dev One storage slot: recording a contribution costs one update of it.
    struct Device {
        bool enrolled;
        uint32 nextVersion;
        uint128 due;
        uint64 spent;
    }

    /// @dev What is due and paid for the current version, since when something is due, and what the pool held when the
    ///      payments began. The first three share a slot: recording a batch costs one.
    struct Round {
        uint128 due;
        uint64 dueSince;
        bool closed;
        uint128 paid;
        uint256 pool;
    }

    /// @notice Marks a model whose error nobody measured.
    uint32 public constant UNMEASURED = type(uint32).max;

    /// @notice One, in parts per million.
    uint32 public constant PPM = 1e6;

    bytes32 private constant CONTRIBUTION_TYPEHASH = keccak256(
        "Contribution(address device,uint32 version,uint32 dataCost,bytes32 digest,bytes cid,uint256 classes,bytes errors,uint64 spent)"
    );

    /// @notice The account that runs the federation; never a device (papers/1 section II.F).
    address public immutable owner;

    /// @notice SHA-256 of the run's plan, all that is agreed but not enforced here.
    bytes32 public immutable planDigest;

    /// @notice Seconds from the first accepted contribution of a version until anyone may pay for it.
    uint64 public immutable patience;

    /// @notice The most epsilon that a device may spend of its privacy, in millionths; 0 if none is counted.
    uint64 public immutable budget;

    /// @notice The current version k.
    uint32 public version;

    /// @notice True once the owner ended the run.
    bool public finished;

    /// @notice What is due and paid for the current version.
    Round public round;

    /// @notice Every version of the model.
    mapping(uint32 version => Model model) public models;

    /// @notice The enrolled devices.
    mapping(address device => Device state) public devices;

    /// @notice `device` may contribute from now on.
    event Enrolled(address indexed device);

    /// @notice `digest` is the model that `version` trains.
    event ModelPublished(uint32 indexed version, bytes32 digest, bytes cid, bytes32 seedCommitment, uint32 errorPpm);

    /// @notice The validation samples of `version` were drawn with `seed`.
    event SeedRevealed(uint32 indexed version, bytes32 seed);

    /// @notice A contribution to the current version was accepted; `due` will be paid for it unless the owner refuses it.
    event Accepted(
        address indexed device,
        uint32 dataCost,
        bytes32 digest,
        bytes cid,
        uint256 classes,
        bytes errors,
        uint64 spent,
        bytes32 r,
        bytes32 vs,
        uint128 due
    );

    /// @notice A contribution was refused when it was submitted; `device` is a mere claim if the signature is bad.
    event Rejected(
        address indexed device,
        uint32 version,
        uint32 dataCost,
        bytes32 digest,
        bytes cid,
        uint256 classes,
        bytes errors,
        uint64 spent,
        bytes32 r,
        bytes32 vs,
        Refusal reason
    );

    /// @notice The owner refused what `device` sent for `version`, or recorded that it sent nothing. The zero address
    ///         stands for a node that never told its account.
    event Refused(address indexed device, uint32 indexed version, Refusal reason);

    /// @notice `version` takes contributions again.
    event Reopened(uint32 indexed version);

    /// @notice What `device` sent for `version` was paid for, but the owner found it of no use: the next model is without it.
    event LeftOut(address indexed device, uint32 indexed version, Refusal reason);

    /// @notice `version` takes no more contributions; what was accepted is all that can be paid for.
    event Closed(uint32 indexed version);

    /// @notice `device` was credited `amount` for its contribution to `version`.
    event Paid(address indexed device, uint32 indexed version, uint256 amount);

    /// @notice The pool can't pay all that is `due` for `version`; it is shared pro rata.
    event PoolShort(uint32 indexed version, uint256 due, uint256 pool);

    /// @notice The run is over.
    event Finished(uint32 version);

    /// @notice Only the owner may do this.
    error NotOwner(address caller);

    /// @notice Only the owner and the enrolled devices may do this.
    error NotAMember(address caller);

    /// @notice Only the owner relays what others signed.
    error NotYours(address device);

    /// @notice The run is over.
    error AlreadyFinished();

    /// @notice The owner and the zero address can't be devices.
    error NotADevice(address account);

    /// @notice `device` is enrolled already.
    error AlreadyEnrolled(address device);

    /// @notice `device` was not paid for the current version: its contribution can be refused.
    error NotPaid(address device);

    /// @notice `reason` is decided by the contract, not found by the owner.
    error NotAFinding(Refusal reason);

    /// @notice Payments of `version` have begun: what was judged stays as it is.
    error PaymentsBegun(uint32 version);

    /// @notice Accepted contributions of `version` are not paid yet.
    error Unpaid(uint32 version, uint256 due, uint256 paid);

    /// @notice The owner judged `judged` to be due for `version`, but it is `due`.
    error NotAsJudged(uint32 version, uint256 due, uint256 judged);

    /// @notice `version` has accepted contributions.
    error VersionOpen(uint32 version);

    /// @notice The seed is not the one that was committed to for `version`.
    error WrongSeed(uint32 version);

    modifier whileRunning() {
        if (finished) revert AlreadyFinished();
        _;
    }

    modifier onlyOwner() {
        if (msg.sender != owner) revert NotOwner(msg.sender);
        _;
    }

    constructor(IERC20 token_, bytes32 planDigest_, uint64 patience_, uint64 budget_, Model memory first)
        Treasury(token_)
        EIP712("flower-chain", "1")
    {
        owner = msg.sender;
        planDigest = planDigest_;
        patience = patience_;
        budget = budget_;
        _publish(0, first);
    }

    /// @notice Adds devices to the allowlist.
    function enrol(address[] calldata accounts) external onlyOwner whileRunning {
        for (uint256 i; i < accounts.length; ++i) {
            address device = accounts[i];
            if (device == owner || device == address(0)) revert NotADevice(device);
            if (devices[device].enrolled) revert AlreadyEnrolled(device);
            devices[device].enrolled = true;
            emit Enrolled(device);
        }
    }

    /// @notice Records contributions (papers/1: FederatedLearning and UploadGradient): the owner relays those of all
    ///         devices, or a device sends its own. Nobody else can have it on record that a device was refused.
    function submit(SignedContribution[] calldata batch) external whileRunning {
        if (msg.sender != owner && !devices[msg.sender].enrolled) revert NotAMember(msg.sender);
        uint32 current = version;
        bool closed = round.closed;
        bytes32 domain = _domainSeparatorV4();
        uint128 due = 0;
        for (uint256 i; i < batch.length; ++i) {
            uint128 more = _record(batch[i], current, closed, domain);
            // Schemes judge less than 2^96 to be due, and a transaction holds no 2^32 contributions.
            unchecked {
                due += more;
            }
        }
        if (due == 0) return;
        if (round.due == 0) round.dueSince = uint64(block.timestamp);
        round.due += due;
    }

    /// @notice Ends the submissions of the current version: from here on its owner knows all that it has to judge.
    function close() external onlyOwner whileRunning {
        _close();
    }

    /// @notice Takes back `close` while nothing is due: for a run that goes on after what was to be its end.
    function reopen() external onlyOwner whileRunning {
        if (round.due != 0) revert VersionOpen(version);
        if (!round.closed) return;
        round.closed = false;
        emit Reopened(version);
    }

    /// @notice The owner refuses what it found wrong off chain, or records that a device failed to answer. An
    ///         enrolled one can't contribute to the current version any more. What was judged stays once payments began.
    /// @param device Whose contribution to the current version; the zero address for a node without a known account.
    /// @param reason One after `Worthless` and before `OverBudget`.
    function refuse(address device, Refusal reason) external onlyOwner whileRunning {
        _requireFinding(reason);
        if (round.paid != 0 && devices[device].nextVersion > version) revert PaymentsBegun(version);
        round.due -= _takeDue(device);
        if (devices[device].enrolled) devices[device].nextVersion = version + 1;
        emit Refused(device, version, reason);
    }

    /// @notice The owner says that it can't use what `device` was paid for, because somebody had it paid before the owner
    ///         could look at it. The device keeps the money; the next model is without its update.
    /// @param device Whose contribution to the current version.
    /// @param reason One after `Worthless` and before `OverBudget`.
    function leaveOut(address device, Refusal reason) external onlyOwner whileRunning {
        _requireFinding(reason);
        Device storage state = devices[device];
        if (round.paid == 0 || state.due != 0 || state.nextVersion <= version) revert NotPaid(device);
        emit LeftOut(device, version, reason);
    }

    /// @notice Credits what is due for accepted contributions (papers/1: Payment), and passes over accounts to which
    ///         nothing is. Closes the version, and with the first payment fixes what it is paid from. Only the owner may
    ///         call it, or anyone `patience` seconds after the first contribution was accepted.
    function pay(address[] calldata accounts) external nonReentrant {
        if (msg.sender != owner && !_overdue()) revert NotOwner(msg.sender);
        _close();
        bool first = round.paid == 0;
        uint256 due = round.due;
        uint256 funds = first ? pool() : round.pool;
        uint128 paid = 0;
        for (uint256 i; i < accounts.length; ++i) {
            uint128 share = _takeDue(accounts[i]);
            if (share == 0) continue;
            paid += share;
            uint256 amount = due > funds ? Math.mulDiv(share, funds, due) : share;
            emit Paid(accounts[i], version, amount);
            _credit(accounts[i], amount);
        }
        if (paid == 0) return;
        round.paid += paid;
        if (!first) return;
        round.pool = funds;
        if (due > funds) emit PoolShort(version, due, funds);
    }

    /// @notice Ends the current version and publishes the next model; the same again if nothing was accepted.
    /// @param seed The seed of the version that ends.
    /// @param next The model of the version that begins.
    /// @param judged The sum of what the owner knows to be due; after a reorganisation of the chain it may be another.
    function advance(bytes32 seed, Model calldata next, uint256 judged) external onlyOwner whileRunning {
        if (round.paid != round.due) revert Unpaid(version, round.due, round.paid);
        if (round.due != judged) revert NotAsJudged(version, round.due, judged);
        if (keccak256(abi.encodePacked(seed)) != models[version].seedCommitment) revert WrongSeed(version);
        emit SeedRevealed(version, seed);
        delete round;
        version += 1;
        _publish(version, next);
    }

    /// @notice Ends the run: no further contributions, and what is left of the pool goes back to the owner; again, if
    ///         something arrives later. A version for which something was due must be ended by `advance` first.
    function finish() external onlyOwner nonReentrant {
        if (round.due != 0) revert VersionOpen(version);
        if (!finished) {
            finished = true;
            emit Finished(version);
        }
        _emptyPool(owner);
    }

    /// @notice The hash that the device of `contribution` signs (EIP-712).
    function hashContribution(Contribution calldata contribution) external view returns (bytes32) {
        return _hashTypedDataV4(_structHash(contribution));
    }

    /// @dev What is hashed with the domain.
    function _structHash(Contribution calldata contribution) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                CONTRIBUTION_TYPEHASH,
                contribution.device,
                contribution.version,
                contribution.dataCost,
                contribution.digest,
                keccak256(contribution.cid),
                contribution.classes,
                keccak256(contribution.errors),
                contribution.spent
            )
        );
    }

    /// @dev What the scheme makes of a contribution that is formally in order: a reason, or what is due for it, below 2^96.
    function _judge(Contribution calldata contribution) internal view virtual returns (Refusal reason, uint128 due);

    function _record(SignedContribution calldata item, uint32 current, bool closed, bytes32 domain)
        private
        returns (uint128 due)
    {
        Contribution calldata c = item.contribution;
        if (msg.sender != owner && msg.sender != c.device) revert NotYours(c.device);
        uint64 spent = c.spent;
        Refusal reason = _check(item, current, closed, spent, domain);
        if (reason == Refusal.None) {
            (reason, due) = _judge(c);
            // Also of what the scheme refuses: the update has left the device.
            devices[c.device] = Device(true, current + 1, due, spent);
        }
        if (reason == Refusal.None) {
            emit Accepted(c.device, c.dataCost, c.digest, c.cid, c.classes, c.errors, spent, item.r, item.vs, due);
        } else {
            emit Rejected(
                c.device, c.version, c.dataCost, c.digest, c.cid, c.classes, c.errors, spent, item.r, item.vs, reason
            );
        }
    }

    /// @dev The checks that come before any scheme: signature, role, version, once per device and version, and the budget.
    ///      Where that is counted every contribution costs something: as much as before is an old charge told again, or an
    ///      update without noise.
    function _check(SignedContribution calldata item, uint32 current, bool closed, uint64 spent, bytes32 domain)
        private
        view
        returns (Refusal)
    {
        Contribution calldata c = item.contribution;
        // What is left out is the fault's detail.
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError fault,) =
            ECDSA.tryRecover(MessageHashUtils.toTypedDataHash(domain, _structHash(c)), item.r, item.vs);
        if (fault != ECDSA.RecoverError.NoError || signer != c.device) return Refusal.BadSignature;
        Device storage device = devices[signer];
        if (!device.enrolled) return Refusal.NotEnrolled;
        if (c.version != current) return c.version < current ? Refusal.StaleVersion : Refusal.FutureVersion;
        if (closed) return Refusal.VersionClosed;
        if (device.nextVersion > current) return Refusal.SecondContribution;
        if (spent > budget) return Refusal.OverBudget;
        if (budget != 0 && spent <= device.spent) return Refusal.BudgetDecreased;
        return Refusal.None;
    }

    function _requireFinding(Refusal reason) private pure {
        if (reason <= Refusal.Worthless || reason >= Refusal.OverBudget) revert NotAFinding(reason);
    }

    /// @dev True if the owner left accepted contributions unpaid for too long.
    function _overdue() private view returns (bool) {
        if (round.due == round.paid) return false;
        // A validator shifts the time by seconds, the patience is hours or days.
        // slither-disable-next-line timestamp
        return block.timestamp >= uint256(round.dueSince) + patience; // forge-lint: disable-line(block-timestamp)
    }

    /// @dev Ends the submissions of the current version, if that has not happened yet.
    function _close() private {
        if (round.closed) return;
        round.closed = true;
        emit Closed(version);
    }

    /// @dev What is due to `device` for the current version, which is then no longer due.
    function _takeDue(address device) private returns (uint128 due) {
        due = devices[device].due;
        if (due != 0) devices[device].due = 0;
    }

    function _publish(uint32 version_, Model memory model) private {
        models[version_] = model;
        emit ModelPublished(version_, model.digest, model.cid, model.seedCommitment, model.errorPpm);
    }
}
