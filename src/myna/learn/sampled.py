"""Prototype driver."""
import dataclasses, math, time
import torch
from torch import Tensor
from myna.learn.asker import Asker
from myna.learn.sweep import *
from myna.lowrank.likelihood import Operators, Rows as EvidenceRows, log_likelihood, maximise, maximise_positive
from myna.lowrank.model import LowRankModel
from myna.lowrank.step import Step
from myna.lowrank.student import Strings

def to_model(ops, spec, histories=None):
    steps=[]
    for t,A in enumerate(ops.steps):
        L=A.sum(2).T
        G=A.permute(1,0,2)/torch.where(L.abs()>1e-300,L,torch.ones_like(L))[:,:,None]
        steps.append(Step(L.contiguous(),G.contiguous(), histories[t] if histories else ()))
    return LowRankModel.of(spec,ops.first,tuple(steps))

def positive_start(bases, rows):
    for share in (1.0,):
        H=len(bases)
        b=Operators(torch.ones(1).double(),tuple(operators(bases[t],bases[t+1] if t+1<H else None,share) for t in range(H)))
        ok=all(bool((s.sum(2)>0).all()) for s in b.steps)
        if ok and math.isfinite(log_likelihood(b,rows)[0]): return b,share
    raise RuntimeError('no positive start')

def staged(ops, ev, log, t0, steps=(40,25,20), shares=(.1,.4,1.0), **kw):
    n=len(ev.tokens); g=torch.Generator().manual_seed(1); perm=torch.randperm(n,generator=g)
    for k,f in zip(steps,shares):
        i=perm[:max(1,int(n*f))]
        rows=EvidenceRows.of(*[c[i] for c in ev])
        ops,asc=maximise_positive(ops,rows,max_steps=k,tolerance=1e-5,**kw)
        log('  stage',f,asc.values[0],asc.values[-1],asc.steps,round(time.time()-t0,1))
    return ops

@dataclasses.dataclass
class Settings:
    budget:int
    stationary:bool=False
    count_prompts:bool=False
    level:float=0.001
    max_rank:int=64
    plain:float=.45
    table:float=.2
    words:float=.2
    check:float=.05
    look:int|None=None

def learn(ledger, st, generator, log=print):
    spec=ledger.spec; H=spec.horizon
    t0=time.time()
    asker=Asker(ledger.samples('learn'), int(st.budget*(1-st.check)), count_prompts=st.count_prompts)
    checker=Asker(ledger.samples('check'), int(st.budget*st.check), count_prompts=st.count_prompts)
    n=int(st.budget*st.plain)//H
    plain=asker.strings(n,None)
    log('plain',n,round(time.time()-t0,1))
    sv=Surveyor(asker,plain,generator,level=st.level,max_rank=st.max_rank,spanner_bound=2.0,look=st.look)
    cuts=[Rows() for _ in range(H)]
    table_purse=st.budget*st.table/(H-1)
    bases=[None]*H
    checks=checker.strings(max(20,int(st.budget*st.check*.3)//H),None)
    model=None; ops=None; final=False
    for rnd in range(5):
        deep_total=st.budget*st.words/2 if rnd else 0
        size=sum(len(w)>0 for r in cuts for w in r.words)
        for t in range(H):
            if t==0: hs=[()]
            else:
                b=bases[t-1]
                kids=[(*h,o) for h in b.histories for o in range(spec.num_tokens) if cuts[t-1].short[h].reshape(spec.num_tokens+1,-1).sum(1)[o]>0]
                hs=list(dict.fromkeys([*kids,*sv.sampled_histories(t)]))
            share=len(cuts[t].words)/max(1,size)
            sv.measure(cuts[t],hs,table_purse,deep_total*share)
            old=bases[t].histories if bases[t] else ()
            bases[t]=sv.basis(cuts[t],hs,sv.classes([t]),old,[sv.classes([t],k) for k in range(1,sv.suffix)])
        ev=asker.evidence()
        rows=EvidenceRows.of(*ev)
        raw=Operators(torch.ones(1).double(),tuple(operators(bases[t],bases[t+1] if t+1<H else None,0.0) for t in range(H)))
        log('round',rnd,'ranks',[b.rank.rank for b in bases],'spent',asker.spent,round(time.time()-t0,1))
        start,lam=positive_start(bases,rows)
        ops=staged(start,ev,log,t0)
        model=to_model(ops,spec)
        log('ml',lam,round(time.time()-t0,1))
        yield rnd,to_model(raw,spec),to_model(start,spec),model,asker
        # check
        found=counterexamples(checker,model,checks,int(st.budget*st.check*.7/3))
        log('counterexamples',found)
        new=False
        for x,p,z in found[:2]:
            for r in range(1,p):
                w=x[r:p]
                for j in range(1,len(w)+1):
                    if w[:j] not in cuts[r].words: cuts[r].words.append(w[:j]); new=True
        if final: break
        if not new:
            final=True
            k=int(asker.left*.98)//H
            if k>0:
                more=asker.strings(k,None); sv._plain=plain=Strings(torch.cat([plain.tokens,more.tokens]),torch.cat([plain.lengths,more.lengths]))

def counterexamples(checker, model, checks, purse, draws=16):
    """prefixes whose draws contradict the model"""
    spec=checker.spec; H=spec.horizon
    per=max(1,purse//(draws*H))
    found=[]
    for t in range(H):
        rows=checks.tokens[:per,:t]
        hs=list(dict.fromkeys(tuple(r) for r in rows.tolist()))
        ans=checker.ask(hs,draws,1)[:,:,0]
        st=model.initial(len(hs))
        X=torch.tensor(hs,dtype=torch.int64).reshape(len(hs),t)
        for k in range(t): st,_=model.step(st,X[:,k])
        q=model.law(st).exp().clamp(min=1e-4)
        cnt=torch.stack([(ans==o).sum(1) for o in range(spec.num_tokens)],1).double()
        # G statistic per prefix
        e=draws*q/q.sum(1,keepdim=True)
        chi=((cnt-e)**2/e).sum(1)
        var=2*(spec.num_tokens-1)+ (1/e).sum(1)  # approx variance of chi2 with small cells
        z=(chi-(spec.num_tokens-1))/var.sqrt()
        for i in z.argsort(descending=True)[:2].tolist():
            if z[i]>7: found.append((hs[i],t,float(z[i])))
    found.sort(key=lambda f:-f[2])
    return found[:4]
