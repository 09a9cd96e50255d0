/-
A prelude for equations between natural numbers: all that stands between Lean's kernel and the theorems.

Lean starts every file with `import Init`, which defines everything from `Nat` to `String`. A file that opens with the
word `prelude` starts from nothing instead: no numbers, no `=`, no `rw`. This file is such a beginning. It imports
nothing, so a reader can see everything a proof may use.

  1. The names that Lean expects to exist: it looks them up when it compiles a type, an `induction` or a `sorry`.
  2. The natural numbers with `+`, `*`, `^` and numerals.
  3. The notation and the tactics. These are Lean's own, compiled into the shared library that this file is run by:
     declaring a compiled parser or macro under its own name tells Lean that it is there.
  4. What `rw` is made of.
  5. The lemmas. All else has to be proved by induction: there is no a ^ (m + n) = a ^ m * a ^ n here.

Names and statements are those of Lean's own library (`Init`), so that a theorem and its proof are meant to stand there as
they are. Only `+`, `*` and `^` are computed by other means: by `Nat.rec`, without compiled code. No lemma rests on an
axiom. What must be declared as an `axiom`, because its definition is compiled, shows up in `#print axioms` if a proof leans
on it, and the verifier then rejects the proof.
-/
prelude
set_option autoImplicit false
set_option genCtorIdx false  -- no numbering of constructors: it would need natural numbers
universe u v w

/- ## 1. What Lean looks up by name -/

-- What the code generator calls "a thing without content" and "a thing of any type". Only it uses them.
axiom lcErased : Type
axiom lcAny : Type

-- What `cases` and `induction` are made of; it has to be there before the first inductive type. `PUnit` has one element,
-- `Eq` is equality (`x = x` is the only way to prove one), `HEq` is equality between two types that may differ. `id`, `cast`
-- and `Function.const` occur in the proofs that `cases h` makes for an equation h.
set_option bootstrap.inductiveCheckResultingUniverse false in
inductive PUnit : Sort u where
  | unit : PUnit
inductive Eq {α : Sort u} : α → α → Prop where
  | refl (a : α) : Eq a a
inductive HEq {α : Sort u} : α → {β : Sort u} → β → Prop where
  | refl (a : α) : HEq a a
@[reducible] def Eq.ndrec.{u1, u2} {α : Sort u2} {a : α} {motive : α → Sort u1} (m : motive a) {b : α} (h : Eq a b) :
    motive b :=
  Eq.rec (motive := fun x _ => motive x) m h
def id {α : Sort u} (a : α) : α := a
def Function.const {α : Sort u} (β : Sort v) (a : α) : β → α := fun _ => a
def cast {α β : Sort u} (h : Eq α β) (a : α) : β := Eq.ndrec (motive := fun x => x) a h
theorem heq_of_eq {α : Sort u} {a b : α} (h : Eq a b) : HEq a b :=
  Eq.ndrec (motive := fun x => HEq a x) (HEq.refl a) h
theorem eq_of_heq {α : Sort u} {a b : α} (h : HEq a b) : Eq a b :=
  HEq.rec (motive := fun {γ} y _ => (e : Eq α γ) → Eq (cast e a) y) (fun _ => Eq.refl a) h (Eq.refl α)
inductive True : Prop where
  | intro : True
inductive False : Prop
noncomputable def False.elim {C : Sort u} (h : False) : C := False.rec (fun _ => C) h
inductive Bool : Type where
  | false : Bool
  | true : Bool

/-- `sorry` stands for `sorryAx`: an axiom that proves anything, and by which `#print axioms` gives a gap away. -/
axiom sorryAx (α : Sort u) (synthetic : Bool) : α

/- ## 2. The natural numbers -/

inductive Nat : Type where
  | zero : Nat
  | succ (n : Nat) : Nat

-- `5 : Nat` is `OfNat.ofNat 5`, and `a + b` is `HAdd.hAdd a b`, which finds `Nat.add` through the type of a and b.
class OfNat (α : Type u) (n : Nat) : Type u where
  ofNat : α
@[default_instance 100] instance instOfNatNat (n : Nat) : OfNat Nat n := OfNat.mk n
class Add (α : Type u) where
  add : α → α → α
class Mul (α : Type u) where
  mul : α → α → α
class NatPow (α : Type u) where
  pow : α → Nat → α
class Pow (α : Type u) (β : Type v) where
  pow : α → β → α
@[reducible] def outParam (α : Sort u) : Sort u := α  -- marks what follows from the other arguments of a class
class HAdd (α : Type u) (β : Type v) (γ : outParam (Type w)) where
  hAdd : α → β → γ
class HMul (α : Type u) (β : Type v) (γ : outParam (Type w)) where
  hMul : α → β → γ
class HPow (α : Type u) (β : Type v) (γ : outParam (Type w)) where
  hPow : α → β → γ
@[default_instance] instance instHAdd {α : Type u} [Add α] : HAdd α α α := HAdd.mk Add.add
@[default_instance] instance instHMul {α : Type u} [Mul α] : HMul α α α := HMul.mk Mul.mul
@[default_instance] instance instHPow {α : Type u} {β : Type v} [Pow α β] : HPow α β α := HPow.mk Pow.pow
@[default_instance] instance instPowNat {α : Type u} [NatPow α] : Pow α Nat := Pow.mk NatPow.pow

-- n + (k + 1) = (n + k) + 1, n * (k + 1) = n * k + n and n ^ (k + 1) = n ^ k * n hold by definition.
noncomputable def Nat.add (n m : Nat) : Nat := Nat.rec (motive := fun _ => Nat) n (fun _ sum => Nat.succ sum) m
noncomputable instance instAddNat : Add Nat := Add.mk Nat.add
noncomputable def Nat.mul (n m : Nat) : Nat := Nat.rec (motive := fun _ => Nat) 0 (fun _ product => Nat.add product n) m
noncomputable instance instMulNat : Mul Nat := Mul.mk Nat.mul
noncomputable def Nat.pow (n m : Nat) : Nat := Nat.rec (motive := fun _ => Nat) 1 (fun _ power => Nat.mul power n) m
noncomputable instance instNatPowNat : NatPow Nat := NatPow.mk Nat.pow

/- ## 3. Notation and tactics -/

-- What the compiled code works on.
axiom String : Type
inductive Lean.Name : Type where
  | anonymous : Name
  | str (pre : Name) (s : String) : Name
  | num (pre : Name) (i : Nat) : Name
inductive Lean.ParserDescr : Type where  -- the kinds are numbered in this order in the compiled code
  | const (name : Lean.Name)
  | unary (name : Lean.Name) (p : ParserDescr)
  | binary (name : Lean.Name) (p₁ p₂ : ParserDescr)
  | node (kind : Lean.Name) (prec : Nat) (p : ParserDescr)
  | trailingNode (kind : Lean.Name) (prec lhsPrec : Nat) (p : ParserDescr)
  | symbol (val : String)
  | nonReservedSymbol (val : String) (includeIdent : Bool)
  | cat (catName : Lean.Name) (rbp : Nat)
axiom Lean.Syntax : Type
axiom Lean.TrailingParserDescr : Type
abbrev Lean.Macro : Type := Lean.Syntax → Lean.Syntax → Lean.Syntax → Lean.Syntax
abbrev Lean.PrettyPrinter.Unexpander : Type := Lean.Syntax → Lean.Syntax → Lean.Syntax → Lean.Syntax

/- Each line below reads: a compiled parser (or macro, or printer) of this name exists; use it. -/

-- a = b, a + b, a * b, a ^ b: the parser, the macro that turns it into `Eq a b`, ..., and the way back, for messages
@[extern "compiled", term_parser] axiom «term_=_» : Lean.TrailingParserDescr
@[extern "compiled", term_parser] axiom «term_+_» : Lean.TrailingParserDescr
@[extern "compiled", term_parser] axiom «term_*_» : Lean.TrailingParserDescr
@[extern "compiled", term_parser] axiom «term_^_» : Lean.TrailingParserDescr
@[extern "compiled", macro «term_=_»] axiom «_aux_Init_Notation___macroRules_term_=__2» : Lean.Macro
@[extern "compiled", macro «term_+_»] axiom «_aux_Init_Notation___macroRules_term_+__2» : Lean.Macro
@[extern "compiled", macro «term_*_»] axiom «_aux_Init_Notation___macroRules_term_*__2» : Lean.Macro
@[extern "compiled", macro «term_^_»] axiom «_aux_Init_Notation___macroRules_term_^__2» : Lean.Macro
@[extern "compiled", app_unexpander Eq] axiom _aux_Init_Notation___unexpand_Eq_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander HAdd.hAdd] axiom _aux_Init_Notation___unexpand_HAdd_hAdd_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander HMul.hMul] axiom _aux_Init_Notation___unexpand_HMul_hMul_1 : Lean.PrettyPrinter.Unexpander
@[extern "compiled", app_unexpander HPow.hPow] axiom _aux_Init_Notation___unexpand_HPow_hPow_1 : Lean.PrettyPrinter.Unexpander

namespace Lean.Parser.Tactic

-- Tactics whose meaning is built into Lean: the parser is enough.
@[extern "compiled", tactic_parser] axiom intro : ParserDescr
@[extern "compiled", tactic_parser] axiom exact : ParserDescr
@[extern "compiled", tactic_parser] axiom apply : ParserDescr
@[extern "compiled", tactic_parser] axiom cases : ParserDescr
@[extern "compiled", tactic_parser] axiom induction : ParserDescr

-- Tactics that are macros in Lean, too: the parsers, then what they expand to. `rw` is `rewrite`, then `rfl` if that ends it.
@[extern "compiled", tactic_parser] axiom rwSeq : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticRfl : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticTry_ : ParserDescr
@[extern "compiled", tactic_parser] axiom tacticSorry : ParserDescr
@[extern "compiled", macro rwSeq] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_rwSeq_1 : Macro
@[extern "compiled", macro tacticRfl] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticRfl_1 : Macro
@[extern "compiled", macro tacticTry_] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticTry__1 : Macro
@[extern "compiled", macro tacticSorry] axiom _aux_Init_Tactics___macroRules_Lean_Parser_Tactic_tacticSorry_1 : Macro

end Lean.Parser.Tactic

/- ## 4. Equality: what `rw` is made of -/

theorem rfl {α : Sort u} {a : α} : a = a := Eq.refl a
theorem Eq.symm {α : Sort u} {a b : α} (h : a = b) : b = a := Eq.ndrec (motive := fun x => x = a) rfl h
theorem Eq.trans {α : Sort u} {a b c : α} (h : a = b) (k : b = c) : a = c := Eq.ndrec (motive := fun x => a = x) h k
theorem congrArg {α : Sort u} {β : Sort v} {a b : α} (f : α → β) (h : a = b) : f a = f b :=
  Eq.ndrec (motive := fun x => f a = f x) rfl h
noncomputable def Eq.mpr {α β : Sort u} (h : α = β) (b : β) : α := Eq.ndrec (motive := fun x => x) b (Eq.symm h)
noncomputable def Eq.mp {α β : Sort u} (h : α = β) (a : α) : β := Eq.ndrec (motive := fun x => x) a h

-- The cases of `induction n with` are `0` and `n + 1`, not `Nat.zero` and `Nat.succ n`; so are those of `cases n with`.
@[induction_eliminator] noncomputable def Nat.recAux {motive : Nat → Sort u} (zero : motive 0)
    (succ : (n : Nat) → motive n → motive (n + 1)) (t : Nat) : motive t := Nat.rec zero succ t
@[cases_eliminator] noncomputable def Nat.casesAuxOn {motive : Nat → Sort u} (t : Nat) (zero : motive 0)
    (succ : (n : Nat) → motive (n + 1)) : motive t := Nat.rec zero (fun n _ => succ n) t

/- ## 5. The lemmas -/

-- Sums
theorem Nat.add_zero (n : Nat) : n + 0 = n := rfl
theorem Nat.zero_add (n : Nat) : 0 + n = n := by
  induction n with
  | zero => rfl
  | succ n ih => exact congrArg Nat.succ ih
theorem Nat.add_assoc (n m k : Nat) : n + m + k = n + (m + k) := by
  induction k with
  | zero => rfl
  | succ k ih => exact congrArg Nat.succ ih
theorem Nat.succ_add (n m : Nat) : Nat.succ n + m = Nat.succ (n + m) := by
  induction m with
  | zero => rfl
  | succ m ih => exact congrArg Nat.succ ih
theorem Nat.add_comm (n m : Nat) : n + m = m + n := by
  induction m with
  | zero => exact (Nat.zero_add n).symm
  | succ m ih => exact (congrArg Nat.succ ih).trans (Nat.succ_add m n).symm
theorem Nat.add_left_comm (n m k : Nat) : n + (m + k) = m + (n + k) := by
  rw [← Nat.add_assoc, Nat.add_comm n m, Nat.add_assoc]
theorem Nat.add_right_comm (n m k : Nat) : n + m + k = n + k + m := by
  rw [Nat.add_assoc, Nat.add_comm m k, Nat.add_assoc]
theorem Nat.add_add_add_comm (a b c d : Nat) : a + b + (c + d) = a + c + (b + d) := by
  rw [Nat.add_assoc, Nat.add_left_comm b, Nat.add_assoc]

-- Products
theorem Nat.mul_zero (n : Nat) : n * 0 = 0 := rfl
theorem Nat.mul_add_one (n m : Nat) : n * (m + 1) = n * m + n := rfl
theorem Nat.zero_mul (n : Nat) : 0 * n = 0 := by
  induction n with
  | zero => rfl
  | succ n ih => rw [Nat.mul_add_one, ih]
theorem Nat.mul_one (n : Nat) : n * 1 = n := Nat.zero_add n
theorem Nat.add_one_mul (n m : Nat) : (n + 1) * m = n * m + m := by
  induction m with
  | zero => rfl
  | succ m ih => rw [Nat.mul_add_one, ih, Nat.mul_add_one, Nat.add_add_add_comm]
theorem Nat.mul_comm (n m : Nat) : n * m = m * n := by
  induction m with
  | zero => rw [Nat.zero_mul, Nat.mul_zero]
  | succ m ih => rw [Nat.mul_add_one, ih, Nat.add_one_mul]
theorem Nat.one_mul (n : Nat) : 1 * n = n := by
  rw [Nat.mul_comm, Nat.mul_one]
theorem Nat.mul_two (n : Nat) : n * 2 = n + n := by
  rw [Nat.mul_add_one, Nat.mul_one]
theorem Nat.two_mul (n : Nat) : 2 * n = n + n := by
  rw [Nat.mul_comm, Nat.mul_two]
theorem Nat.mul_add (n m k : Nat) : n * (m + k) = n * m + n * k := by
  induction k with
  | zero => rfl
  | succ k ih => rw [← Nat.add_assoc, Nat.mul_add_one, ih, Nat.mul_add_one, Nat.add_assoc]
theorem Nat.add_mul (n m k : Nat) : (n + m) * k = n * k + m * k := by
  rw [Nat.mul_comm, Nat.mul_add, Nat.mul_comm k, Nat.mul_comm k]
theorem Nat.mul_assoc (n m k : Nat) : n * m * k = n * (m * k) := by
  induction k with
  | zero => rfl
  | succ k ih => rw [Nat.mul_add_one, ih, Nat.mul_add_one, Nat.mul_add]
theorem Nat.mul_left_comm (n m k : Nat) : n * (m * k) = m * (n * k) := by
  rw [← Nat.mul_assoc, Nat.mul_comm n m, Nat.mul_assoc]
theorem Nat.mul_right_comm (n m k : Nat) : n * m * k = n * k * m := by
  rw [Nat.mul_assoc, Nat.mul_comm m k, Nat.mul_assoc]
theorem Nat.mul_mul_mul_comm (a b c d : Nat) : a * b * (c * d) = a * c * (b * d) := by
  rw [Nat.mul_assoc, Nat.mul_left_comm b, Nat.mul_assoc]

-- Powers
theorem Nat.pow_zero (n : Nat) : n ^ 0 = 1 := rfl
theorem Nat.pow_succ {n m : Nat} : n ^ (m + 1) = n ^ m * n := rfl
theorem Nat.pow_add_one' {n m : Nat} : n ^ (m + 1) = n * n ^ m := by
  rw [Nat.pow_succ, Nat.mul_comm]
theorem Nat.pow_one (a : Nat) : a ^ 1 = a := by
  rw [Nat.pow_succ, Nat.pow_zero, Nat.one_mul]
theorem Nat.pow_two (a : Nat) : a ^ 2 = a * a := by
  rw [Nat.pow_succ, Nat.pow_one]

-- Cancelling
theorem Nat.succ.inj {n m : Nat} (h : Nat.succ n = Nat.succ m) : n = m :=
  congrArg (fun k => Nat.rec (motive := fun _ => Nat) 0 (fun k _ => k) k) h
theorem Nat.add_right_cancel {n m k : Nat} (h : n + m = k + m) : n = k := by
  induction m with
  | zero => exact h
  | succ m ih => exact ih (Nat.succ.inj h)
theorem Nat.add_left_cancel {n m k : Nat} (h : n + m = n + k) : m = k := by
  rw [Nat.add_comm n m, Nat.add_comm n k] at h
  exact Nat.add_right_cancel h
theorem Nat.eq_zero_of_add_eq_zero_left {n m : Nat} (h : n + m = 0) : m = 0 :=
  Nat.rec (motive := fun m => n + m = 0 → m = 0) (fun _ => rfl)
    (fun _ _ h => (Eq.mp (congrArg (Nat.rec (motive := fun _ => Prop) True (fun _ _ => False)) h.symm) True.intro : False).elim)
    m h
theorem Nat.eq_zero_of_add_eq_zero_right {n m : Nat} (h : n + m = 0) : n = 0 := by
  rw [Nat.add_comm] at h
  exact Nat.eq_zero_of_add_eq_zero_left h
